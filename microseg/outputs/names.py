"""Names of output files: the name of the image, where a file can have it."""

import os
from hashlib import sha256

from microseg.escaping import printable

__all__ = ["name_digest", "usable_name"]

_LONGEST = 180  # bytes in UTF-8; the endings of outputs and temporary folders come to it


def usable_name(name: str, end: str = "") -> str:
    """A name for output files, from the name of an image.

    Control characters and bytes that are not UTF-8 are escaped, as ``%n`` and ``%xfc``; the end of a long name is
    replaced by a hash of it.

    Args:
        name: Name of an image.
        end: End that is kept.
    """
    plain = printable(name).replace("\\", "%").encode(errors="replace")
    if len(plain) > _LONGEST:
        end = f"-{name_digest(printable(name))}{end}"
        plain = plain[: _LONGEST - len(end)]
    return plain.decode(errors="ignore") + end


def name_digest(name: str) -> str:
    """Eight digits of the hash of a name or path."""
    return sha256(os.fsencode(name)).hexdigest()[:8]
