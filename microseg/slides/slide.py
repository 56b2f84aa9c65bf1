"""What a slide is to the rest of the code: levels, and RGB regions of them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from microseg.errors import DataError, ImageReadError

__all__ = ["ArraySlide", "Level", "Slide", "SlideView", "over_white"]


@dataclass(frozen=True)
class Level:
    """One resolution of a slide.

    Attributes:
        width: in pixels of this level.
        height: in pixels of this level.
        downsample: pixels of the finest level along one pixel of this one; 1 for the finest.
    """

    width: int
    height: int
    downsample: float


class Slide(ABC):
    """An image read region by region; several threads may read at once. Close it, or use it in a ``with`` block.

    Attributes:
        path: of the file.
        levels: the finest first.
        mpp: microns per pixel of the finest level, as the file states them; None when it does not.
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

    def read(self, level: int, x: int, y: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        """Read a region.

        Args:
            level: number of the level.
            x: of the region's left edge, in pixels of the level.
            y: of its upper edge.
            width: in pixels of the level.
            height: in pixels of the level.

        Shape:
            (height, width, 3)

        Returns:
            RGB, 0..255.

        Raises:
            DataError: the region is not inside the level.
            ImageReadError: the file is damaged there.
        """
        of = self.levels[level]
        if not (0 <= x < x + width <= of.width and 0 <= y < y + height <= of.height):
            raise DataError(
                f"{self.path}: expected a region inside {of.width} x {of.height}, got {width} x {height} at ({x}, {y})."
            )
        try:
            return self._read(level, x, y, width, height)
        except ImageReadError:
            raise
        except Exception as error:  # damaged files make decoders raise nearly anything
            raise ImageReadError(
                f"{self.path}: expected pixels at ({x}, {y}) of level {level}, got: {str(error) or repr(error)}. "
                "The file is damaged there, or compressed in a way that cannot be read; export or copy it again."
            ) from error

    def level_for(self, downsample: float) -> int:
        """Number of the coarsest level that is not coarser than this downsample."""
        fitting = [number for number, level in enumerate(self.levels) if level.downsample <= 1.02 * downsample]
        return max(fitting, key=lambda number: self.levels[number].downsample, default=0)

    def thumbnail(self, longest: int) -> npt.NDArray[np.uint8]:
        """The whole slide, small.

        Args:
            longest: of the two sides of the picture, in pixels; a smaller slide is not enlarged.

        Shape:
            (h, w, 3)
        """
        factor = min(1.0, longest / max(self.width, self.height))
        size = (max(1, round(self.width * factor)), max(1, round(self.height * factor)))
        level = self.levels[number := self.level_for(1 / factor)]
        picture = Image.new("RGB", size)
        rows = max(1, min(size[1], (2**22 * size[1]) // (level.width * level.height)))  # 4 megapixels at once
        for top in range(0, size[1], rows):
            bottom = min(size[1], top + rows)
            first, last = top * level.height / size[1], bottom * level.height / size[1]
            y, end = int(first), min(level.height, -int(-last // 1))
            part = Image.fromarray(self.read(number, 0, y, level.width, end - y))
            box = (0.0, first - y, float(level.width), min(last - y, float(end - y)))
            picture.paste(part.resize((size[0], bottom - top), Image.Resampling.BOX, box), (0, top))
        return np.array(picture, np.uint8)

    def close(self) -> None:  # noqa: B027 (not every slide has a file open)
        """Let the file go; nothing can be read afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def _read(self, level: int, x: int, y: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        """The same as `read`, of a region that is inside."""


class ArraySlide(Slide):
    """An image in memory.

    Args:
        pixels: (H, W, 3), RGB.
        path: of its file.
        mpp: microns per pixel; None if unknown.
    """

    def __init__(self, pixels: npt.NDArray[np.uint8], path: Path, mpp: float | None) -> None:
        super().__init__(path, (Level(pixels.shape[1], pixels.shape[0], 1.0),), mpp)
        self._pixels = pixels

    def _read(self, _level: int, x: int, y: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        return self._pixels[y : y + height, x : x + width]


def over_white(rgba: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Lay pixels with transparency over white, the background of a brightfield slide.

    Shape:
        (h, w, 4) → (h, w, 3)
    """
    if (rgba[..., 3] == 255).all():
        return np.ascontiguousarray(rgba[..., :3])
    layer = Image.fromarray(rgba, mode="RGBA")
    return np.array(Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB"), np.uint8)


class SlideView:
    """A slide on the pixel grid of a model.

    A region of it equals the same region of the whole slide rescaled as `Engine.probabilities` rescales images, where
    the slide's finest level is used; a coarser level takes its place where there is one fine enough.

    Args:
        slide: it is not closed with the view.
        zoom: factor by which the slide is enlarged; below 1 it is made smaller.

    Attributes:
        width: pixels of the view.
        height: pixels of the view.
        step_x: pixels of the slide along one pixel of the view.
        step_y: the same, downwards.
    """

    def __init__(self, slide: Slide, zoom: float = 1.0) -> None:
        self.width, self.height = max(1, round(slide.width * zoom)), max(1, round(slide.height * zoom))
        self.step_x, self.step_y = slide.width / self.width, slide.height / self.height
        self._slide, self._number = slide, slide.level_for(max(self.step_x, self.step_y))
        level = slide.levels[self._number]
        self._scale_x, self._scale_y = level.width / self.width, level.height / self.height

    def read(self, rows: slice, columns: slice) -> npt.NDArray[np.uint8]:
        """Read a region, in pixels of the view; it may reach beyond the lower and right edge, where it is mirrored.

        Shape:
            (rows, columns, 3)
        """
        last_row, last_column = min(rows.stop, self.height), min(columns.stop, self.width)
        part = self._inside(slice(rows.start, last_row), slice(columns.start, last_column))
        below, right = rows.stop - last_row, columns.stop - last_column
        if not below and not right:
            return part
        return np.pad(part, ((0, below), (0, right), (0, 0)), mode="reflect")

    def _inside(self, rows: slice, columns: slice) -> npt.NDArray[np.uint8]:
        level = self._slide.levels[self._number]
        if self._scale_x == self._scale_y == 1:
            return self._slide.read(
                self._number, columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start
            )
        left, right, x, x_end = _reach(columns, self._scale_x, level.width)
        top, bottom, y, y_end = _reach(rows, self._scale_y, level.height)
        part = Image.fromarray(self._slide.read(self._number, x, y, x_end - x, y_end - y))
        size = (columns.stop - columns.start, rows.stop - rows.start)
        box = (left - x, top - y, right - x, bottom - y)
        return np.array(part.resize(size, Image.Resampling.BILINEAR, box), np.uint8)


def _reach(span: slice, scale: float, length: int) -> tuple[float, float, int, int]:
    """Where a span of the view begins and ends in the level, and which whole pixels its filter needs."""
    start, stop = span.start * scale, min(span.stop * scale, float(length))
    margin = 2 + int(scale)  # the bilinear filter reaches max(1, scale) pixels beyond the center of the last one
    return start, stop, max(0, int(start) - margin), min(length, int(stop) + 1 + margin)
