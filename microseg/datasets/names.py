"""What an image is called, and when two names are one."""

import re
import unicodedata
from pathlib import Path

from microseg.slides.images import IMAGE_SUFFIXES

__all__ = ["image_key", "image_name"]

_SUFFIX = re.compile(rf"(\.ome)*({'|'.join(map(re.escape, IMAGE_SUFFIXES))})$", re.IGNORECASE)


def image_name(path: Path | str) -> str:
    """Name an image by its file: without folder, without suffix, without ``.ome``.

    Args:
        path: A file, or its name.

    Returns:
        The name.
    """
    return _SUFFIX.sub("", Path(path).name)


def image_key(name: str) -> str:
    """Tell names apart as the least able file system does: regardless of case and of how accents are written.

    Args:
        name: An image's name, as `image_name` gives it.

    Returns:
        The same text for names that cannot lie side by side.
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
