"""Text from outside (file names, ``lab.yaml``, tags, addresses), escaped for the place where it is shown."""

import os
import re

__all__ = ["csv_cell", "markdown", "mask_secrets", "printable"]

# control characters, separators of lines, directions of writing, and bytes of a file name that are not UTF-8
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_USER = re.compile(r"(?<=://)(?:[^\s/?#@:]*:(?!\d+/)[^\s@]*|[^\s/?#]*)@(?:[^\s/?#@]*@)*")  # also of several @
_NAMED_SECRET = re.compile(
    r"(?i)([?&;,\s'\"]|^)([\w.-]*(?:passw(?:or)?d|pwd|secret|token|(?:access|account|api|private)[_-]?key|signature))"
    r"=([^&;,\s'\"]+)"
)
_HEADER = re.compile(r"(?i)\b(authorization['\"]?\s*[:=]\s*['\"]?(?:basic|bearer)|bearer)\s+[\w.~+/=-]{8,}")
_SECRET_VARIABLE = re.compile(r"(PASSWORD|SECRET|TOKEN|_KEY|AUTH_STRING)$")
_SHORTEST_SECRET = 6  # characters: a shorter value may be a part of any word

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_MARKDOWN = re.compile(r"([\\`*\[\]<>|~]|(?<![^\W_])_|_(?![^\W_]))")
_MARKDOWN_START = re.compile(r"^(\d*)([#=+.)-])")


def mask_secrets(text: str) -> str:
    """Replace the secrets in a message or an address by ``***``.

    Secrets are user and password of addresses, values whose names say so (``password=``, ``AccountKey=``),
    authorization headers, and the values of environment variables such as ``MLFLOW_TRACKING_PASSWORD``.
    """
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and value in text and _SECRET_VARIABLE.search(name):
            text = text.replace(value, "***")
    text = _USER.sub("***@", text)
    text = _NAMED_SECRET.sub(r"\1\2=***", text)
    return _HEADER.sub(r"\1 ***", text)


def printable(text: str, keep: str = "") -> str:
    r"""Escape control characters (``\n``, ``\x1b``) and bytes that are not UTF-8 (``\xe9``); all other text is kept.

    Args:
        text: Such as a file name.
        keep: Control characters that are not escaped.
    """
    return _UNPRINTABLE.sub(lambda match: match[0] if match[0] in keep else _escape(match[0]), text)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else character.encode("unicode_escape").decode()


def csv_cell(text: str) -> str:
    """Escape a text for a CSV file: spreadsheets take one that begins with ``= + - @`` for a formula.

    Such a text gets an apostrophe in front, as spreadsheets write it. Line breaks are escaped.
    """
    shown = printable(text)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown


def markdown(text: str) -> str:
    """Escape a text for one line of Markdown, so that it is shown as it is."""
    escaped = _MARKDOWN.sub(r"\\\1", printable(text, keep="\n\r\t"))
    return _MARKDOWN_START.sub(r"\1\\\2", " ".join(escaped.split()))  # no heading, no list
