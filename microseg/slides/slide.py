"""A slide: RGB regions of its resolution levels, a slide held in memory, and a view of a slide at another scale."""

from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from microseg.errors import DataError, ImageReadError

__all__ = ["ArraySlide", "Level", "Slide", "SlideView"]


@dataclass(frozen=True)
class Level:
    """One resolution of a slide.

    Attributes:
        width: In pixels of this level.
        height: In pixels of this level.
        downsample: Pixels of the finest level along one pixel of this one; 1 for the finest.
    """

    width: int
    height: int
    downsample: float


class Slide(ABC):
    """An image read region by region; several threads may read at once. Close it, or use it in a ``with`` block.

    A reader subclasses it, implements `decode_region`, and overrides `close` where a file stays open.

    Attributes:
        path: The file.
        levels: The resolutions, the finest first.
        mpp: Microns per pixel of the finest level, as stated by the file; None when it states none.
    """

    def __init__(self, path: Path, levels: tuple[Level, ...], mpp: float | None) -> None:
        self.path, self.levels, self.mpp = path, levels, mpp

    @property
    def width(self) -> int:
        """Pixels of the finest level."""
        return self.levels[0].width

    @property
    def height(self) -> int:
        """Pixels of the finest level."""
        return self.levels[0].height

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        """Read a region.

        Args:
            level: Number of the level.
            x: Left edge of the region, in pixels of the level.
            y: Upper edge of the region, in pixels of the level.
            width: In pixels of the level.
            height: In pixels of the level.

        Shape:
            (height, width, 3)

        Returns:
            RGB, 0..255.

        Raises:
            DataError: The region is not inside the level.
            ImageReadError: The file is damaged there.
        """
        of = self.levels[level]
        if not (0 <= x < x + width <= of.width and 0 <= y < y + height <= of.height):
            raise DataError(
                f"{self.path}: expected a region inside {of.width} x {of.height}, got {width} x {height} at ({x}, {y})."
            )
        try:
            return self.decode_region(level, x, y, width, height)
        except ImageReadError:
            raise
        except Exception as error:  # damaged files make decoders raise nearly anything
            raise ImageReadError(
                f"{self.path}: expected pixels at ({x}, {y}) of level {level}, got: {str(error) or repr(error)}. "
                "The file is damaged there, or compressed in a way that cannot be read; export or copy it again."
            ) from error

    @abstractmethod
    def decode_region(self, level: int, x: int, y: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        """Decode a region; the arguments and the result are those of `read_region`.

        `read_region` has checked that the region is inside the level, and raises an `ImageReadError` for whatever this
        raises.

        Returns:
            RGB, 0..255.
        """

    def level_for(self, downsample: float) -> int:
        """Number of the coarsest level that is not coarser than this downsample."""
        fine = [number for number, level in enumerate(self.levels) if level.downsample <= 1.02 * downsample]
        return max(fine, key=lambda number: self.levels[number].downsample, default=0)

    def read_part(self, part: tuple[float, float, float, float], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """Read a part at any scale: from the coarsest level that is fine enough, resampled bilinearly.

        Args:
            part: Left and upper edge, width and height, in pixels of the finest level; inside the slide.
            size: Width and height of the result, in pixels.

        Shape:
            (size[1], size[0], 3)
        """
        x, y, width, height = part
        number = self.level_for(max(width / size[0], height / size[1]))
        level = self.levels[number]
        scale_x, scale_y = level.width / self.width, level.height / self.height
        across, down = (
            width * scale_x / size[0],
            height * scale_y / size[1],
        )  # pixels of the level
        left, right, first_column, end_column = _span(x * scale_x, (x + width) * scale_x, across, level.width)
        top, bottom, first_row, end_row = _span(y * scale_y, (y + height) * scale_y, down, level.height)
        pixels = self.read_region(number, first_column, first_row, end_column - first_column, end_row - first_row)
        box = (left - first_column, top - first_row, right - first_column, bottom - first_row)
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR, box), np.uint8)

    def thumbnail(self, longest: int, *, readers: int = 1) -> npt.NDArray[np.uint8]:
        """Read the whole slide at a small size.

        Args:
            longest: Longer side of the thumbnail, in pixels; a smaller slide is not enlarged.
            readers: Threads that read; each needs memory for 4 megapixels.

        Shape:
            (h, w, 3)
        """
        factor = min(1.0, longest / max(self.width, self.height))
        size = (max(1, round(self.width * factor)), max(1, round(self.height * factor)))
        if size == (self.width, self.height) and size[0] * size[1] <= 2**22:
            return self.read_region(0, 0, 0, *size)
        level = self.levels[number := self.level_for(1 / factor)]
        thumbnail = Image.new("RGB", size)
        rows = max(1, min(size[1], (2**22 * size[1]) // (level.width * level.height)))  # 4 megapixels at once

        def read(top: int) -> Image.Image:
            bottom = min(size[1], top + rows)
            first, last = top * level.height / size[1], bottom * level.height / size[1]
            y, end = int(first), min(level.height, -int(-last // 1))
            part = Image.fromarray(self.read_region(number, 0, y, level.width, end - y))
            box = (0.0, first - y, float(level.width), min(last - y, float(end - y)))
            return part.resize((size[0], bottom - top), Image.Resampling.BOX, box)

        tops = range(0, size[1], rows)
        with ThreadPoolExecutor(readers) as pool:
            for top, part in zip(tops, pool.map(read, tops), strict=True):
                thumbnail.paste(part, (0, top))
        return np.array(thumbnail, np.uint8)

    def close(self) -> None:  # noqa: B027 (not every slide has a file open)
        """Close the file; nothing can be read afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class ArraySlide(Slide):
    """A slide held in memory, as ordinary images are, which have no tiles to read separately.

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


class SlideView:
    """A slide on the pixel grid of a model.

    A region of it equals the same region of the whole slide rescaled as `Engine.probabilities` rescales images, where
    the slide's finest level is read; a coarser level is read instead where one is fine enough.

    Args:
        slide: The slide; it is not closed with the view.
        zoom: Factor by which the slide is enlarged; below 1 it is reduced.

    Attributes:
        width: Pixels of the view.
        height: Pixels of the view.
        step_x: Horizontal size of one pixel of the view, in pixels of the slide.
        step_y: Vertical size of one pixel of the view, in pixels of the slide.
    """

    def __init__(self, slide: Slide, zoom: float = 1.0) -> None:
        self.width, self.height = max(1, round(slide.width * zoom)), max(1, round(slide.height * zoom))
        self.step_x, self.step_y = slide.width / self.width, slide.height / self.height
        self._slide, self._number = slide, slide.level_for(max(self.step_x, self.step_y))
        level = slide.levels[self._number]
        self._scale_x, self._scale_y = level.width / self.width, level.height / self.height

    def read(self, rows: slice, columns: slice) -> npt.NDArray[np.uint8]:
        """Read a region, in pixels of the view; beyond the lower and right edge the slide is mirrored.

        Shape:
            (rows, columns, 3)
        """
        last_row, last_column = min(rows.stop, self.height), min(columns.stop, self.width)
        part = self._read_inside(slice(rows.start, last_row), slice(columns.start, last_column))
        below, right = rows.stop - last_row, columns.stop - last_column
        if not below and not right:
            return part
        return np.pad(part, ((0, below), (0, right), (0, 0)), mode="reflect")

    def _read_inside(self, rows: slice, columns: slice) -> npt.NDArray[np.uint8]:
        level, read = self._slide.levels[self._number], self._slide.read_region
        size = (columns.stop - columns.start, rows.stop - rows.start)
        if self._scale_x == self._scale_y == 1:
            return read(self._number, columns.start, rows.start, *size)
        left, right, x, x_end = _level_span(columns, self._scale_x, level.width)
        top, bottom, y, y_end = _level_span(rows, self._scale_y, level.height)
        part = Image.fromarray(read(self._number, x, y, x_end - x, y_end - y))
        box = (left - x, top - y, right - x, bottom - y)
        return np.array(part.resize(size, Image.Resampling.BILINEAR, box), np.uint8)


def _level_span(span: slice, scale: float, length: int) -> tuple[float, float, int, int]:
    """Start and end of a span of the view in the level, and the whole pixels that the bilinear filter needs."""
    return _span(span.start * scale, span.stop * scale, scale, length)


def _span(start: float, stop: float, scale: float, length: int) -> tuple[float, float, int, int]:
    stop = min(stop, float(length))
    margin = 2 + int(scale)  # the bilinear filter extends max(1, scale) pixels beyond the center of the last one
    return start, stop, max(0, int(start) - margin), min(length, int(stop) + 1 + margin)
