"""A slide at another scale, as if it had been rescaled as a whole, region by region."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from microseg.slides.slide import Slide

__all__ = ["SlideView"]


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
