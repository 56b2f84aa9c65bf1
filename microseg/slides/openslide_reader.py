"""Whole slides in the formats of scanner vendors, read by OpenSlide."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
from openslide import OpenSlide, OpenSlideError

from microseg.errors import ImageReadError
from microseg.slides.color import over_white
from microseg.slides.pixel_size import image_mpp, valid_mpp
from microseg.slides.slide import Level, Slide

__all__ = ["OpenSlideReader", "VendorSlide", "slide_parts"]

_MAX_INDEX_BYTES = 2**18  # read of a VMS or VMU file, which lists file names


class VendorSlide(Slide):
    """A slide that OpenSlide reads: SVS, NDPI, MRXS, SCN, VMS, BIF, SVSLIDE, tiled TIFF …

    Args:
        path: The file; of several the one that OpenSlide expects.

    Raises:
        ImageReadError: OpenSlide cannot open it.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._slide = OpenSlide(str(path))
        except (OpenSlideError, OSError, ValueError) as error:
            raise ImageReadError(
                f"{path}: expected a slide, but OpenSlide cannot open it: {error}. Copy it again with all of its files."
            ) from error
        sizes, downsamples = self._slide.level_dimensions, self._slide.level_downsamples
        levels = tuple(Level(*size, downsample) for size, downsample in zip(sizes, downsamples, strict=True))
        super().__init__(path, levels, self._stated_mpp() or image_mpp(path))

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


def slide_parts(slide: Path) -> Iterator[Path]:
    """Find the further files that a slide consists of, without decoding any.

    Args:
        slide: The file that OpenSlide expects.

    Yields:
        The files in the folder of the same name, beside an MRXS; those that a VMS or a VMU lists, images among them.
    """
    kind = slide.suffix.lower()
    if kind == ".mrxs":
        yield from (path for path in sorted(slide.with_suffix("").rglob("*")) if path.is_file())
    elif kind in (".vms", ".vmu") and slide.is_file():
        text = ""
        with suppress(OSError), slide.open("rb") as file:  # it is rejected, whether it can be read or not
            text = file.read(_MAX_INDEX_BYTES).decode(errors="replace")
        listed = {line.partition("=")[2].strip().replace("\\", "/").rpartition("/")[2] for line in text.splitlines()}
        beside = (path for path in sorted(slide.parent.iterdir()) if path.name in listed and path != slide)
        yield from (path for path in beside if path.is_file())
