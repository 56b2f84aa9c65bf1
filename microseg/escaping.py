"""Text from outside (file names, ``lab.yaml``, tags, addresses), escaped for the place where it is shown."""

import logging
import os
import re
import traceback
from pathlib import PurePath
from typing import Any

__all__ = ["csv_cell", "markdown", "mask_log_records", "mask_secrets", "printable"]

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
_MARKDOWN_START = re.compile(r"^(\d*)([#=+.)-])(?=[#=\s-]|$)")


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

    Such a text gets an apostrophe in front, as spreadsheets write it.
    """
    shown = printable(text, keep="\n")
    return f"'{shown}" if shown.startswith(_FORMULA) else shown


def markdown(text: str) -> str:
    """Escape a text for one line of Markdown, so that it is shown as it is."""
    escaped = _MARKDOWN.sub(r"\\\1", printable(text, keep="\n\r\t"))
    return _MARKDOWN_START.sub(r"\1\\\2", " ".join(escaped.split()))  # no heading, no list


def mask_log_records() -> None:
    """Mask secrets, and escape control characters of names, in all log lines of this process and their tracebacks."""
    create = logging.getLogRecordFactory()
    if isinstance(create, _MaskedRecords):
        return
    logging.setLogRecordFactory(_MaskedRecords(create))


class _MaskedRecords:
    """Creates log records; their arguments stay separate, as some formatters need them."""

    def __init__(self, create: Any) -> None:
        self._create = create

    def __call__(self, *args: Any, **options: Any) -> logging.LogRecord:
        record: logging.LogRecord = self._create(*args, **options)
        if isinstance(record.args, tuple):
            record.args = tuple(
                mask_secrets(printable(str(it))) if isinstance(it, (str, PurePath)) else it for it in record.args
            )
        try:
            message = record.getMessage()
        except Exception:  # logging reports it
            return record
        if (masked := mask_secrets(message)) != message:
            record.msg, record.args = masked, ()
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = mask_secrets("".join(traceback.format_exception(*record.exc_info)).rstrip())
        return record
