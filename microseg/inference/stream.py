"""A slide's mask, from top to bottom, a few rows at a time: what is finished is let go.

Reading, the network and what becomes of the rows overlap. In memory are a few tiles, and along the slide's width the
rows where two rows of tiles fade into one another.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import numpy.typing as npt

from microseg.inference.engine import Engine
from microseg.inference.tiling import Span, Tile, TilePlan
from microseg.slides.slide import SlideView

__all__ = ["Confidence", "MaskRows", "stream_mask"]

_READERS = 2

SoftmaxNetwork = npt.NDArray[np.float32]


@dataclass(frozen=True)
class MaskRows:
    """Finished rows.

    Attributes:
        top: number of the first one.
        mask: (n, W) class indices.
        certainty: (n, W), probability of the pixel's class in 255ths; 0 where nothing was computed.
    """

    top: int
    mask: npt.NDArray[np.uint8]
    certainty: npt.NDArray[np.uint8]


@dataclass
class Confidence:
    """How sure the network was, over all pixels that it saw.

    Attributes:
        pixels: that the network saw.
        highest: sum of the highest probability of each pixel.
        entropy: sum of the entropies, in nats.
    """

    pixels: int = 0
    highest: float = 0.0
    entropy: float = 0.0

    def add(self, probabilities: SoftmaxNetwork, highest: npt.NDArray[np.float32]) -> None:
        """Count in the pixels of a block, (K, h, w) and (h, w)."""
        self.pixels += highest.size
        self.highest += float(highest.sum(dtype=np.float64))
        entropy = probabilities * np.log(np.maximum(probabilities, 1e-12))
        self.entropy -= float(entropy.sum(dtype=np.float64))


def stream_mask(
    engine: Engine, view: SlideView, wanted: Callable[[Tile], bool], certainty: Confidence
) -> Iterator[MaskRows]:
    """Segment a slide from top to bottom.

    The mask equals that of `Engine.probabilities` for the same pixels, but for tiles that are not wanted: there it is
    background, into which the neighbors fade.

    Args:
        engine: the network.
        view: the slide at the model's scale.
        wanted: whether a tile is to be computed.
        certainty: is added to on the way.

    Yields:
        All rows of the view, in order.
    """
    plan = engine.plan(view.height, view.width)
    chosen = {(r, c): tile for r, c, tile in _numbered(plan) if wanted(tile)}
    computed = _predictions(engine, view, list(chosen.values()))
    above: list[SoftmaxNetwork | None] = [None] * len(plan.columns)
    for number, row in enumerate(plan.rows):
        blender = _Row(row, _final(plan.rows, number, view.height), len(engine.classes), view.width, certainty)
        for column in range(len(plan.columns)):
            seen = next(computed) if (number, column) in chosen else None
            span = plan.columns[column]
            above[column] = blender.add(span, _final(plan.columns, column, view.width), seen, above[column])
        yield MaskRows(row.inner_start, blender.mask, blender.certainty)


@dataclass
class _Row:
    """Joins the tiles of one row of tiles, from left to right. What is None stands for background alone."""

    span: Span
    final: int  # rows that no later row of tiles adds to
    classes: int
    width: int
    total: Confidence
    left: SoftmaxNetwork | None = None  # what the tile before gives to the columns shared with this one
    mask: npt.NDArray[np.uint8] = field(init=False)
    certainty: npt.NDArray[np.uint8] = field(init=False)

    def __post_init__(self) -> None:
        self.mask = np.zeros((self.final, self.width), np.uint8)
        self.certainty = np.zeros((self.final, self.width), np.uint8)

    def add(
        self, span: Span, final: int, seen: SoftmaxNetwork | None, above: SoftmaxNetwork | None
    ) -> SoftmaxNetwork | None:
        """Add a tile.

        Args:
            span: its columns.
            final: columns that no later tile of this row adds to.
            seen: (K, h, w), what the network gave.
            above: (K, fade, final), what the row of tiles above gives to the rows shared with this one.

        Returns:
            What this row gives to the rows shared with the one below: (K, fade, final).
        """
        if seen is None and self.left is None and above is None:
            return None
        weights = self.span.weights[:, None] * span.weights[None, :]  # (h', w')
        if seen is None:
            block = np.zeros((self.classes, *weights.shape), np.float32)
            block[0] = weights
        else:
            block = seen[:, self.span.inner_of_tile, span.inner_of_tile] * weights  # (K, h', w')
        if span.fade_in:
            shared = block[:, :, : span.fade_in]
            if self.left is None:
                shared[0] += self.span.weights[:, None] * (1 - span.weights[None, : span.fade_in])
            else:
                shared += self.left
        self.left = None if seen is None else block[:, :, final:].copy()
        block = block[:, :, :final]
        if self.span.fade_in:
            shared = block[:, : self.span.fade_in]
            if above is None:
                shared[0] += 1 - self.span.weights[: self.span.fade_in, None]
            else:
                shared += above
        self._finish(block[:, : self.final], slice(span.inner_start, span.inner_start + final), seen is not None)
        return block[:, self.final :].copy() if self.span.fade_out else None

    def _finish(self, block: SoftmaxNetwork, columns: slice, computed: bool) -> None:
        best = block.argmax(axis=0)  # (h, w)
        highest = np.take_along_axis(block, best[None], axis=0)[0]
        self.mask[:, columns] = best
        if computed:
            self.certainty[:, columns] = (highest * 255 + 0.5).clip(0, 255)
            self.total.add(block, highest)


def _predictions(engine: Engine, view: SlideView, tiles: Sequence[Tile]) -> Iterator[SoftmaxNetwork]:
    """What the network gives for each tile, in order; tiles are read, and computed, ahead."""
    with ThreadPoolExecutor(_READERS) as readers:
        waiting = iter(tiles)
        reading: deque[Future[npt.NDArray[np.uint8]]] = deque()

        def read_ahead(count: int) -> None:
            for tile in islice(waiting, count):
                reading.append(readers.submit(view.read, slice(tile.rows.start, tile.rows.stop), _columns(tile)))

        def in_order() -> Iterator[npt.NDArray[np.uint8]]:
            read_ahead(2 * engine.batch)
            while reading:
                pixels = reading.popleft().result()
                read_ahead(1)
                yield pixels

        yield from engine.predictions(in_order())


def _columns(tile: Tile) -> slice:
    return slice(tile.columns.start, tile.columns.stop)


def _final(spans: Sequence[Span], number: int, length: int) -> int:
    """Pixels of a span, from its inner start on, that the next one does not add to."""
    end = spans[number + 1].inner_start if number + 1 < len(spans) else length
    return end - spans[number].inner_start


def _numbered(plan: TilePlan) -> Iterator[tuple[int, int, Tile]]:
    for r, row in enumerate(plan.rows):
        for c, column in enumerate(plan.columns):
            yield r, c, Tile(row, column)
