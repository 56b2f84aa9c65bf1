"""Slides held in memory: the reader of ordinary images, which have no tiles to read separately."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from microseg.slides.images import read_image
from microseg.slides.pixel_size import image_mpp
from microseg.slides.slide import Level, Slide

__all__ = ["ArraySlide", "ImageReader"]


class ArraySlide(Slide):
    """An image in memory.

    Args:
        pixels: RGB, 0..255.
        path: Path of its file.
        mpp: Microns per pixel; None if unknown.

    Shape:
        pixels (H, W, 3)
    """

    def __init__(self, pixels: npt.NDArray[np.uint8], path: Path, mpp: float | None) -> None:
        super().__init__(path, (Level(pixels.shape[1], pixels.shape[0], 1.0),), mpp)
        self._pixels = pixels

    def decode_region(self, _level: int, x: int, y: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        """Cut the region out."""
        return self._pixels[y : y + height, x : x + width]


class ImageReader:
    """Reads any image that `read_image` reads. It is asked last, and its error states what is wrong."""

    priority = 0
    suffixes: tuple[str, ...] = ()

    def can_open(self, _path: Path) -> bool:
        """Accept every file."""
        return True

    def open(self, path: Path) -> ArraySlide:
        """Read the whole image."""
        return ArraySlide(read_image(path), path, image_mpp(path))
