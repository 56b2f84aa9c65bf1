"""From a file to a slide: who reads it, and whether it has to be read by regions at all."""

import warnings
from contextlib import suppress
from pathlib import Path

import tifffile
from PIL import Image

from microseg.errors import ImageReadError
from microseg.slides.images import is_tiff, read_image
from microseg.slides.openslide_reader import SLIDE_SUFFIXES, VendorSlide, slide_vendor
from microseg.slides.pixel_size import image_mpp
from microseg.slides.slide import ArraySlide, Slide
from microseg.slides.tiff_reader import TiffSlide

__all__ = ["image_pixels", "is_slide", "open_slide"]


def open_slide(path: Path | str) -> Slide:
    """Open any image file so that it can be read by regions.

    Args:
        path: a slide in the format of a scanner's maker, a TIFF (plain, tiled, pyramidal, OME), or any image that
            `read_image` reads, which is then held in memory.

    Returns:
        The slide; close it.

    Raises:
        ImageReadError: the file is missing, empty, damaged or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise ImageReadError(f"{path}: expected a slide or an image, found none. Check the path.")
    if slide_vendor(path) not in (None, "generic-tiff"):
        return VendorSlide(path)
    with suppress(ImageReadError, tifffile.TiffFileError):  # read_image says what is wrong
        if is_tiff(path) and TiffSlide.can_read(path):
            return TiffSlide(path)
    return ArraySlide(read_image(path), path, image_mpp(path))


def is_slide(path: Path | str, *, megapixels: float) -> bool:
    """Whether a file is better read by regions than as a whole.

    Args:
        path: of the file.
        megapixels: of the smallest image to read by regions; files of scanners always are.
    """
    path = Path(path)
    if not path.is_file():
        return False
    if path.suffix.lower() in SLIDE_SUFFIXES or slide_vendor(path) not in (None, "generic-tiff"):
        return True
    pixels = image_pixels(path)
    return pixels is not None and pixels > megapixels * 1e6


def image_pixels(path: Path) -> int | None:
    """Number of pixels that an image file's header states; None when it cannot be read."""
    with suppress(Exception), warnings.catch_warnings():  # whatever is wrong with the file, reading it says
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        if is_tiff(path):
            with tifffile.TiffFile(path) as tiff:
                page = tiff.series[0].keyframe
                return int(page.imagewidth) * int(page.imagelength)
        with Image.open(path) as image:
            return image.width * image.height
    return None
