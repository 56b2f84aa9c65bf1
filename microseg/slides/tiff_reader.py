"""TIFF files by regions: tiled, in strips, pyramidal, OME."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from microseg.slides.channels import ReadOptions
from microseg.slides.decoding import read_errors
from microseg.slides.pixel_size import image_mpp
from microseg.slides.readers import ImageReader
from microseg.slides.slide import Level, Slide
from microseg.slides.tiff_image import TiffImage
from microseg.slides.tiff_layout import is_tiff

__all__ = ["TiffReader", "TiffSlide"]


class TiffSlide(Slide):
    """A TIFF file, read tile by tile or strip by strip; its pixels are those that `read_image` gives.

    Args:
        path: The file.
        options: See `read_image`.

    Raises:
        ImageReadError: The file is damaged, or of a kind that is not understood.
    """

    def __init__(self, path: Path, options: ReadOptions | None = None) -> None:
        with read_errors(path, "an image"):
            self._image = TiffImage(path, options)
        (width, height), sizes = self._image.sizes[0], self._image.sizes
        levels = tuple(Level(w, h, (width / w + height / h) / 2) for w, h in sizes)
        super().__init__(path, levels, image_mpp(path))

    def close(self) -> None:
        """Close the file."""
        self._image.close()

    def decode_region(self, level: int, x: int, y: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        """Decode a region and convert it to RGB."""
        return self._image.rgb(level, x, y, width, height)


class TiffReader(ImageReader):
    """Opens TIFF files by regions."""

    priority = 50

    def can_open(self, path: Path) -> bool:
        """Whether the file is a TIFF."""
        return is_tiff(path)

    def open(self, path: Path, options: ReadOptions | None = None) -> Slide:
        """Open the file."""
        return TiffSlide(path, options)
