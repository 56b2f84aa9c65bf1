"""Tiles: how an image of any size is cut, and how the results are blended without seams.

Neighboring tiles overlap by two halos. The outer half of each halo, which the border of the tile influences, is
discarded; over the inner halves the two tiles are blended. The weights sum to one at every pixel.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from microseg.errors import SettingsError

__all__ = ["Span", "Tile", "TilePlan", "cut_tile", "plan_spans"]


@dataclass(frozen=True)
class Span:
    """One tile along one axis, in pixels of the image.

    Attributes:
        start: First pixel of the network's input.
        stop: End of the input; after the image's end where the image is smaller than its last tile.
        inner_start: First pixel that is kept.
        inner_stop: End of the kept pixels, at most the image's end.
        fade_in: Pixels from ``inner_start`` on that are blended with the previous tile.
        fade_out: Pixels up to ``inner_stop`` that are blended with the next tile.
    """

    start: int
    stop: int
    inner_start: int
    inner_stop: int
    fade_in: int = 0
    fade_out: int = 0

    @property
    def input(self) -> slice:
        """Pixels of the network's input, counted from the start of the image."""
        return slice(self.start, self.stop)

    @property
    def inner(self) -> slice:
        """Kept pixels, counted from the start of the image."""
        return slice(self.inner_start, self.inner_stop)

    @property
    def inner_of_tile(self) -> slice:
        """Kept pixels, counted from the start of the tile."""
        return slice(self.inner_start - self.start, self.inner_stop - self.start)

    @cached_property
    def weights(self) -> npt.NDArray[np.float32]:
        """Weight of each kept pixel: 1, and a linear ramp where tiles are blended.

        Shape:
            (inner_stop - inner_start,)
        """
        weights = np.ones(self.inner_stop - self.inner_start, np.float32)
        weights[: self.fade_in] = _ramp(self.fade_in)
        if self.fade_out:
            weights[-self.fade_out :] = 1 - _ramp(self.fade_out)
        return weights


@dataclass(frozen=True)
class Tile:
    """A tile: a span of rows and a span of columns."""

    rows: Span
    columns: Span

    @property
    def weights(self) -> npt.NDArray[np.float32]:
        """Weight of each kept pixel, (h, w)."""
        return self.rows.weights[:, None] * self.columns.weights[None, :]


@dataclass(frozen=True)
class TilePlan:
    """All tiles of an image, of one size. Iterates row by row, so that finished rows can be released.

    Attributes:
        rows: Spans along the height.
        columns: Spans along the width.
    """

    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def __iter__(self) -> Iterator[Tile]:
        return (Tile(rows, columns) for rows, columns in itertools.product(self.rows, self.columns))


def plan_spans(length: int, *, tile: int, halo: int, multiple: int) -> tuple[Span, ...]:
    """Cut one axis into overlapping spans of equal length, as few and as short as possible.

    Args:
        length: Length of the axis in pixels.
        tile: Longest span in pixels, rounded up to ``multiple``. A shorter axis is one span.
        halo: Half of the least overlap of two spans, in pixels.
        multiple: Starts and lengths of spans are multiples of this, the network's stride.

    Returns:
        The spans from start to end of the axis.

    Raises:
        SettingsError: The tile is too small for its halo, or a number is not positive.
    """
    tile, overlap = _round_up(tile, multiple), _round_up(2 * halo, multiple)
    if length < 1 or halo < 0 or tile < 2 * overlap + 2 * multiple:
        raise SettingsError(
            "Expected a tile of at least four halos and two strides of the network, and an axis of at least one pixel, "
            f"got tile {tile}, halo {halo}, stride {multiple}, axis {length}: enlarge the tile or reduce the halo."
        )
    padded = _round_up(length, multiple)
    if padded <= tile:
        return (Span(0, padded, 0, length),)
    count = 1 + -(-(padded - tile) // (tile - overlap))
    size = _round_up(-(-(padded + (count - 1) * overlap) // count), multiple)
    starts = [(padded - size) * i // ((count - 1) * multiple) * multiple for i in range(count)]
    seams = [(after + before + size) // 2 for before, after in itertools.pairwise(starts)]  # middle of each overlap
    firsts = [0, *(seam - halo // 2 for seam in seams)]
    lasts = [*(seam - halo // 2 + halo for seam in seams), length]
    return tuple(
        Span(start, start + size, first, last, halo if i else 0, halo if i < count - 1 else 0)
        for i, (start, first, last) in enumerate(zip(starts, firsts, lasts, strict=True))
    )


def cut_tile(image: npt.NDArray[np.uint8], tile: Tile) -> npt.NDArray[np.uint8]:
    """The pixels of a tile; beyond the image's end they are mirrored.

    Args:
        image: The image.
        tile: A tile of a plan for an image of this size.

    Shape:
        (H, W, C) → (h, w, C)
    """
    part = image[tile.rows.input, tile.columns.input]
    below = tile.rows.stop - tile.rows.start - part.shape[0]
    right = tile.columns.stop - tile.columns.start - part.shape[1]
    if not below and not right:
        return part
    return np.pad(part, ((0, below), (0, right), (0, 0)), mode="reflect")


def _ramp(length: int) -> npt.NDArray[np.float32]:
    return ((np.arange(length) + 0.5) / max(length, 1)).astype(np.float32)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
