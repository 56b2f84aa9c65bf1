"""Whole slides in the formats of scanner vendors, read by OpenSlide."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from openslide import OpenSlide, OpenSlideError

from microseg.errors import ImageReadError
from microseg.slides.color import over_white
from microseg.slides.pixel_size import image_mpp, valid_mpp
from microseg.slides.slide import Level, Slide

__all__ = ["OpenSlideReader", "VendorSlide"]


class VendorSlide(Slide):
    """A slide that OpenSlide reads: SVS, NDPI, MRXS, SCN, VMS, BIF, SVSLIDE, tiled TIFF …

    Args:
        path: The slide.
        file: The file that OpenSlide expects, where the slide has several.

    Raises:
        ImageReadError: OpenSlide cannot open it.
    """

    def __init__(self, path: Path, file: Path | None = None) -> None:
        try:
            self._slide = OpenSlide(str(file or path))
        except (OpenSlideError, OSError, ValueError) as error:
            raise ImageReadError(
                f"{path}: expected a slide, but OpenSlide cannot open it: {error}. Copy it again with all of its files."
            ) from error
        sizes, downsamples = self._slide.level_dimensions, self._slide.level_downsamples
        levels = tuple(Level(*size, downsample) for size, downsample in zip(sizes, downsamples, strict=True))
        super().__init__(path, levels, self._stated_mpp() or image_mpp(file or path))

    def close(self) -> None:
        """Close the file."""
        self._slide.close()

    def decode_region(self, level: int, x: int, y: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        """Read a region; where the scanner recorded nothing, OpenSlide's pixels are transparent."""
        scale = self.levels[level].downsample
        region = self._slide.read_region((round(x * scale), round(y * scale)), level, (width, height))
        rgba = np.asarray(region, np.uint8)
        return over_white(rgba[..., :3], rgba[..., 3])

    def _stated_mpp(self) -> float | None:
        try:
            x, y = (float(self._slide.properties[f"openslide.mpp-{axis}"]) for axis in "xy")
        except (KeyError, ValueError):
            return None
        return valid_mpp(x, y)


class OpenSlideReader:
    """Opens the files that OpenSlide recognizes, except plain tiled TIFF, which the ``tiff`` reader reads."""

    priority = 100
    suffixes = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide")

    def can_open(self, path: Path) -> bool:
        """Whether OpenSlide recognizes the file as the format of a vendor."""
        try:
            return OpenSlide.detect_format(str(path)) not in (None, "generic-tiff")
        except (OpenSlideError, OSError, ValueError):  # of a name that is not UTF-8
            return False

    def open(self, path: Path) -> VendorSlide:
        """Open the slide."""
        return VendorSlide(path)
