"""TIFF files by regions: tiled, in strips, pyramidal, OME. tifffile reads their structure, GDAL decodes pixels."""

import os
import threading
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from microseg.errors import ImageReadError
from microseg.slides.images import is_tiff, over_white, scale_to_rgb
from microseg.slides.pixel_size import image_mpp
from microseg.slides.readers import ImageReader
from microseg.slides.slide import Level, Slide

__all__ = ["TiffReader", "TiffSlide"]

os.environ.setdefault("GDAL_CACHEMAX", "32")  # megabytes; by default a twentieth of the machine's memory

import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # catching warnings is not thread-safe
_PHOTOMETRIC = tifffile.PHOTOMETRIC
_READABLE = (
    _PHOTOMETRIC.MINISBLACK,
    _PHOTOMETRIC.MINISWHITE,
    _PHOTOMETRIC.RGB,
    _PHOTOMETRIC.PALETTE,
    _PHOTOMETRIC.YCBCR,
    _PHOTOMETRIC.SEPARATED,
)


class TiffSlide(Slide):
    """A TIFF file, read tile by tile or strip by strip.

    Pixels become RGB as in `read_image`, with one difference: the depth of 16-bit values is chosen by the largest
    value of the coarsest level.

    Args:
        path: The file.

    Raises:
        ImageReadError: The file is no TIFF, or of a kind that cannot be read by regions (see `TiffReader.can_open`).
    """

    def __init__(self, path: Path) -> None:
        self._lock, self._open = threading.Lock(), ExitStack()
        try:
            with tifffile.TiffFile(path) as tiff:
                series = tiff.series[0]
                page = series.keyframe
                if not _has_regions(series, page):
                    raise ImageReadError(f"{path}: expected a TIFF of 8 or 16 bits in RGB, gray or palette.")
                _check_complete(path, series.levels)
                self._photometric = page.photometric
                self._colors = None if page.colormap is None else (page.colormap.T >> 8).astype(np.uint8)  # (256, 3)
                sets = [_pages(level) for level in series.levels]
                sizes = [(level.keyframe.imagewidth, level.keyframe.imagelength) for level in series.levels]
            width, height = sizes[0]
            # thumbnails and labels have other shapes: they are not levels
            same = [n for n, (w, h) in enumerate(sizes) if abs(w * height / (h * width) - 1) < 0.02 or min(w, h) < 64]
            levels = tuple(Level(w, h, (width / w + height / h) / 2) for w, h in (sizes[n] for n in same))
            self._levels = [[self._dataset(path, offset) for offset in sets[n]] for n in same]
        except ImageReadError:
            self._open.close()
            raise
        except Exception as error:  # damaged files make decoders raise nearly anything
            self._open.close()
            raise ImageReadError(
                f"{path}: expected a TIFF, but it cannot be opened: {str(error) or repr(error)}. Copy it again."
            ) from error
        super().__init__(path, levels, image_mpp(path))
        self._highest: int | None = None

    def close(self) -> None:
        """Close the file."""
        self._open.close()

    def _dataset(self, path: Path, offset: int) -> Any:
        return self._open.enter_context(rasterio.open(f"GTIFF_DIR:off:{offset}:{path}"))

    def decode_region(self, level: int, x: int, y: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        """Decode a region and convert it to RGB."""
        bands = self._bands(level, x, y, width, height)  # (bands, h, w)
        values = bands.transpose(1, 2, 0)
        if self._colors is not None:
            return np.asarray(self._colors[values[..., 0]], np.uint8)
        if self._photometric == _PHOTOMETRIC.SEPARATED:  # GDAL converts CMYK to RGBA
            return np.ascontiguousarray(values[..., :3])
        if self._photometric == _PHOTOMETRIC.MINISWHITE:
            values = np.iinfo(values.dtype).max - values
        if values.dtype == np.uint8 and values.shape[2] == 3:
            return np.ascontiguousarray(values)
        if values.shape[2] == 2:  # gray with alpha
            values = values[..., (0, 0, 0, 1)]
        if values.dtype == np.uint8 and values.shape[2] == 4:
            return over_white(np.ascontiguousarray(values))
        return scale_to_rgb(self.path, values, highest=self._largest() if values.dtype == np.uint16 else 255)

    def _bands(self, level: int, x: int, y: int, width: int, height: int) -> npt.NDArray[Any]:
        window = Window(x, y, width, height)
        with self._lock:
            parts = [dataset.read(window=window) for dataset in self._levels[level]]
        return np.concatenate(parts)

    def _largest(self) -> int:
        """The largest value of the coarsest level."""
        if self._highest is None:
            last = len(self.levels) - 1
            width, height = self.levels[last].width, self.levels[last].height
            rows = max(1, 2**22 // width)
            tops = range(0, height, rows)
            self._highest = max(int(self._bands(last, 0, top, width, min(rows, height - top)).max()) for top in tops)
        return self._highest


class TiffReader:
    """Opens TIFF files by regions where possible, and as images in memory otherwise."""

    priority = 50
    suffixes: tuple[str, ...] = ()  # a large TIFF is a slide by its size, not by its name

    def can_open(self, path: Path) -> bool:
        """Whether the file is a TIFF whose pixels can be decoded region by region."""
        try:
            if not is_tiff(path):
                return False
            with tifffile.TiffFile(path) as tiff:
                return _has_regions(tiff.series[0], tiff.series[0].keyframe)
        except Exception:  # damaged: the image reader reports it
            return False

    def open(self, path: Path) -> Slide:
        """Open the file; one that GDAL cannot open is read as an image."""
        try:
            return TiffSlide(path)
        except ImageReadError:
            return ImageReader().open(path)


def _has_regions(series: Any, page: Any) -> bool:
    paged = "C" in series.axes and "C" not in page.axes  # one page per channel
    channels = page.samplesperpixel if not paged else (series.shape[0] if series.axes == "CYX" else 0)
    return (
        page.dtype in (np.uint8, np.uint16)
        and page.bitspersample in (8, 16)
        and page.photometric in _READABLE
        and page.tags.valueof(274, 1) == 1  # upright
        and (channels in (1, 3, 4) or (channels == 2 and bool(page.extrasamples)))
        and not (page.photometric in (_PHOTOMETRIC.PALETTE, _PHOTOMETRIC.SEPARATED) and page.dtype != np.uint8)
    )


def _pages(level: Any) -> list[int]:
    """Offsets of the pages that hold the first image of a level: one, or one per channel."""
    paged = "C" in level.axes and "C" not in level.keyframe.axes
    return [level.pages[number].offset for number in range(level.shape[0] if paged else 1)]


def _check_complete(path: Path, levels: Any) -> None:
    """Reject a truncated file, whose missing pixels GDAL would read as black."""
    size = path.stat().st_size
    for level in levels:
        page = level.keyframe
        ends = [at + count for at, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if not ends or max(ends) > size:
            raise ImageReadError(
                f"{path}: expected at least {max(ends, default=size + 1):,} bytes, got {size:,}: it is truncated. "
                "Copy it again."
            )
