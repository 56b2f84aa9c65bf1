"""Slides in the formats of scanners' makers, through OpenSlide."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
from openslide import OpenSlide, OpenSlideError

from microseg.errors import ImageReadError
from microseg.slides.pixel_size import MPP_RANGE, image_mpp
from microseg.slides.slide import Level, Slide, over_white

__all__ = ["SLIDE_SUFFIXES", "VendorSlide", "slide_parts", "slide_vendor"]


class VendorSlide(Slide):
    """A slide that OpenSlide reads: SVS, NDPI, MRXS, SCN, VMS, BIF, SVSLIDE, tiled TIFF …

    Args:
        path: of the file; of several the one that OpenSlide wants.

    Raises:
        ImageReadError: OpenSlide cannot open it.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._slide = OpenSlide(str(path))
        except (OpenSlideError, OSError) as error:
            raise ImageReadError(
                f"{path}: expected a slide, but OpenSlide cannot open it: {error}. Copy it again, all of its files."
            ) from error
        levels = tuple(
            Level(width, height, downsample)
            for (width, height), downsample in zip(
                self._slide.level_dimensions, self._slide.level_downsamples, strict=True
            )
        )
        super().__init__(path, levels, self._stated_mpp() or image_mpp(path))

    def close(self) -> None:
        """Let the file go."""
        self._slide.close()

    def _stated_mpp(self) -> float | None:
        try:
            x, y = (float(self._slide.properties[f"openslide.mpp-{axis}"]) for axis in "xy")
        except (KeyError, ValueError):
            return None
        return round(x, 6) if MPP_RANGE[0] <= x <= MPP_RANGE[1] and abs(x - y) <= 0.01 * x else None

    def _read(self, level: int, x: int, y: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        scale = self.levels[level].downsample
        region = self._slide.read_region((round(x * scale), round(y * scale)), level, (width, height))
        return over_white(np.asarray(region, np.uint8))  # where the scanner saw nothing it is transparent


def slide_vendor(path: Path) -> str | None:
    """Whose format OpenSlide takes a file for; ``generic-tiff`` for plain tiled TIFF, None for no slide."""
    try:
        vendor: str | None = OpenSlide.detect_format(str(path))
    except (OpenSlideError, OSError):
        return None
    return vendor


SLIDE_SUFFIXES: tuple[str, ...] = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide")
"""Endings of slide files besides those of images; a TIFF is told by its content."""

_LONGEST_LIST = 2**18  # bytes of a VMS or VMU that are looked at; they list file names


def slide_parts(slide: Path) -> Iterator[Path]:
    """The further files that a slide consists of.

    Args:
        slide: the file that OpenSlide wants.

    Yields:
        The files in the folder of the same name, beside an MRXS; those that a VMS or a VMU lists, images among them.
    """
    kind = slide.suffix.lower()
    if kind == ".mrxs":
        yield from (path for path in sorted(slide.with_suffix("").rglob("*")) if path.is_file())
    elif kind in (".vms", ".vmu") and slide.is_file():
        text = ""
        with suppress(OSError), slide.open("rb") as file:  # it is refused, whether it can be read or not
            text = file.read(_LONGEST_LIST).decode(errors="replace")
        listed = {line.partition("=")[2].strip().replace("\\", "/").rpartition("/")[2] for line in text.splitlines()}
        beside = (path for path in sorted(slide.parent.iterdir()) if path.name in listed and path != slide)
        yield from (path for path in beside if path.is_file())
