"""How many pixels an image may have to be read as a whole."""

from pathlib import Path

from microseg.errors import ImageReadError

__all__ = ["MAX_PIXELS", "check_pixels", "image_too_large"]

MAX_PIXELS = 178_956_970  # what Pillow itself refuses as a decompression bomb: about 13,400 squared


def check_pixels(path: Path, pixels: float) -> None:
    """Refuse an image before it is decoded, by what its header states.

    Args:
        path: Of the file, for the message.
        pixels: Their number.

    Raises:
        ImageReadError: There are over ``MAX_PIXELS``.
    """
    if pixels > MAX_PIXELS:
        raise image_too_large(path)


def image_too_large(path: Path) -> ImageReadError:
    """The error that says what to do with an image of over ``MAX_PIXELS``."""
    return ImageReadError(
        f"{path}: expected at most {MAX_PIXELS:,} pixels, got more. Cut it into smaller regions; "
        "whole slides are read by segmentation, not as images."
    )
