"""Decoding image files with Pillow and imagecodecs: limits, orientation, and errors that say what is wrong."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps
from tifffile import TiffFile

from microseg.errors import ImageReadError
from microseg.slides.tiff_image import upright
from microseg.slides.tiff_layout import is_tiff, main_page
from microseg.slides.tiff_samples import read_orientation

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "check_pixels",
    "decode",
    "image_orientation",
    "is_deep_png",
    "read_deep_png",
    "read_errors",
]

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs, about 13,400 squared
_OTHERS = ("PNG", "JPEG", "BMP")  # TIFF is read by `TiffImage`
_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 274  # EXIF and TIFF tag


@contextmanager
def read_errors(path: Path, what: str) -> Iterator[None]:
    """Raise an `ImageReadError` for any exception of a decoder; damaged files make them raise nearly anything."""
    try:
        if not path.is_file():
            raise ImageReadError(f"{path}: expected {what} file, found none. Check the path.")
        if path.stat().st_size == 0:
            raise ImageReadError(f"{path}: expected {what}, got an empty file (0 bytes). Export or copy it again.")
        yield
    except ImageReadError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path) from error
    except Exception as error:
        raise ImageReadError(
            f"{path}: expected {what} (PNG, JPEG, TIFF or BMP), but it cannot be read: {_one_line(error)}. "
            "The file is damaged, truncated or of another kind; export or copy it again."
        ) from error


def decode(path: Path, content: bytes | None = None) -> Image.Image:
    """Decode with Pillow: truncated files are errors, and the orientation is applied.

    Args:
        path: The file.
        content: Its content, where it was read already.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # other libraries enable it, and then missing rows are gray
    with Image.open(path if content is None else io.BytesIO(content), formats=_OTHERS) as image:
        check_pixels(path, image.width * image.height)
        if image.format == "PNG" and (frames := getattr(image, "n_frames", 1)) > 1:
            raise ImageReadError(f"{path}: expected one image, got an animation of {frames}. Export one of them.")
        image.load()
        return ImageOps.exif_transpose(image)


def is_deep_png(path: Path) -> bool:
    """Whether a file is a PNG of 16 bits, by its header."""
    with path.open("rb") as file:
        header = file.read(25)
    return header[:8] == _PNG and header[24:25] == b"\x10"


def read_deep_png(path: Path) -> npt.NDArray[np.uint16]:
    """Read a PNG of 16 bits, upright. Exceptions of decoders are not caught.

    Shape:
        (H, W, 1 | 2 | 3 | 4): gray or RGB, with transparency after them where the file has some
    """
    import imagecodecs

    image = decode(path)  # checks sums, size and completeness, but keeps 8 bits of colors
    values = np.asarray(imagecodecs.png_decode(path.read_bytes()))
    if values.dtype != np.uint16:
        raise ImageReadError(f"{path}: expected 16 bits as its header states, got {values.dtype}. Export it again.")
    values = upright(values.reshape(*values.shape[:2], -1), image_orientation(path))
    if values.shape[1::-1] != image.size:
        raise ImageReadError(f"{path}: expected {image.size} pixels, got {values.shape[1::-1]}. Export it again.")
    return values


def image_orientation(path: Path) -> int:
    """Orientation that a file states, 1 (upright) to 8, by its TIFF tag or EXIF; 1 where it states none."""
    try:
        if is_tiff(path):
            with TiffFile(path) as tiff:
                return read_orientation(path, main_page(path, tiff)[0])
        with Image.open(path, formats=_OTHERS) as image:
            orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # what is wrong with the file is reported when it is read
        return 1
    return int(orientation) if orientation in range(1, 9) else 1


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or repr(error)[:500]


def check_pixels(path: Path, pixels: float) -> None:
    """Reject an image before it is decoded, by the size in its header."""
    if pixels > MAX_PIXELS:
        raise _too_large(path)


def _too_large(path: Path) -> ImageReadError:
    return ImageReadError(
        f"{path}: expected at most {MAX_PIXELS:,} pixels, got more. Cut it into smaller regions; "
        "whole slides are read by segmentation, not as images."
    )
