"""The mask of a slide, computed strip by strip from top to bottom.

Reading, the network and the processing of strips overlap. In memory are a few tiles, and the rows of the slide in which
two rows of tiles are blended.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import numpy.typing as npt

from microseg.inference.engine import Engine
from microseg.inference.tiling import Span, Tile
from microseg.models.separation import interior_bytes
from microseg.outputs.measurements import ConfidenceSums
from microseg.outputs.writers import MaskStrip
from microseg.slides.slide import SlideView

__all__ = ["stream_mask"]

_READERS = 2

Probabilities = npt.NDArray[np.float32]


def stream_mask(
    engine: Engine,
    view: SlideView,
    selected: Callable[[Tile], bool],
    confidence: ConfidenceSums,
    *,
    with_image: bool = False,
) -> Iterator[MaskStrip]:
    """Segment a slide from top to bottom.

    The mask, and the interior where the network predicts it, equal those of `Engine.outputs` for the same pixels,
    except in tiles that are not selected: these are background, into which the neighboring tiles are blended.

    Args:
        engine: The network.
        view: The slide at the model's pixel size.
        selected: Whether a tile is computed.
        confidence: Updated with each computed block.
        with_image: Whether strips have the pixels of the slide; white where nothing was computed.

    Yields:
        All rows of the view, in order, with their confidence as uint8; 0 where nothing was computed.
    """
    plan = engine.plan(view.height, view.width)
    interior = engine.channels.index("interior") if engine.instances else None
    chosen = dict.fromkeys(tile for tile in plan if selected(tile))  # a set that keeps the order
    pixels: deque[npt.NDArray[np.uint8]] | None = deque() if with_image else None
    computed = _predictions(engine, view, list(chosen), pixels)
    above: list[Probabilities | None] = [None] * len(plan.columns)
    for number, row in enumerate(plan.rows):
        final = _final(plan.rows, number, view.height)
        blender = _Row(row, final, len(engine.classes), len(engine.channels), view.width, confidence, interior)
        image = np.full((final, view.width, 3), 255, np.uint8) if with_image else None
        for column, span in enumerate(plan.columns):
            predicted, width = None, _final(plan.columns, column, view.width)
            if Tile(row, span) in chosen:
                predicted = next(computed)
                if image is not None and pixels is not None:
                    inner = pixels.popleft()[row.inner_of_tile, span.inner_of_tile]
                    image[:, span.inner_start : span.inner_start + width] = inner[:final, :width]
            above[column] = blender.add(span, width, predicted, above[column])
        yield MaskStrip(row.inner_start, blender.mask, blender.confidence, interior=blender.interior, image=image)


@dataclass
class _Row:
    """Blends the tiles of one row of tiles, from left to right. None stands for background only."""

    span: Span
    final: int  # rows that no later row of tiles contributes to
    classes: int
    channels: int
    width: int
    total: ConfidenceSums
    interior_channel: int | None = None
    left: Probabilities | None = None  # contribution of the previous tile to the shared columns
    mask: npt.NDArray[np.uint8] = field(init=False)
    confidence: npt.NDArray[np.uint8] = field(init=False)
    interior: npt.NDArray[np.uint8] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.mask = np.zeros((self.final, self.width), np.uint8)
        self.confidence = np.zeros((self.final, self.width), np.uint8)
        if self.interior_channel is not None:
            self.interior = np.zeros((self.final, self.width), np.uint8)

    def add(
        self, span: Span, final: int, predicted: Probabilities | None, above: Probabilities | None
    ) -> Probabilities | None:
        """Add a tile.

        Args:
            span: Columns of the tile.
            final: Number of columns that no later tile of this row contributes to.
            predicted: Outputs, (K + M, h, w); None for a tile that is not computed.
            above: Contribution of the row of tiles above to the shared rows, (K + M, fade, final).

        Returns:
            Contribution of this row to the rows shared with the row of tiles below, (K + M, fade, final).
        """
        if predicted is None and self.left is None and above is None:
            return None
        weights = self.span.weights[:, None] * span.weights[None, :]  # (h', w')
        if predicted is None:
            block = np.zeros((self.channels, *weights.shape), np.float32)
            block[0] = weights
        else:
            block = predicted[:, self.span.inner_of_tile, span.inner_of_tile] * weights  # (K, h', w')
        if span.fade_in:
            shared = block[:, :, : span.fade_in]
            if self.left is None:
                shared[0] += self.span.weights[:, None] * (1 - span.weights[None, : span.fade_in])
            else:
                shared += self.left
        self.left = None if predicted is None else block[:, :, final:].copy()
        block = block[:, :, :final]
        if self.span.fade_in:
            shared = block[:, : self.span.fade_in]
            if above is None:
                shared[0] += 1 - self.span.weights[: self.span.fade_in, None]
            else:
                shared += above
        self._finish(block[:, : self.final], slice(span.inner_start, span.inner_start + final), predicted is not None)
        return block[:, self.final :].copy() if self.span.fade_out else None

    def _finish(self, outputs: Probabilities, columns: slice, computed: bool) -> None:
        block = outputs[: self.classes]  # (K, h, w)
        best = block.argmax(axis=0)  # (h, w)
        highest = np.take_along_axis(block, best[None], axis=0)[0]
        self.mask[:, columns] = best
        if self.interior is not None:
            self.interior[:, columns] = interior_bytes(outputs[self.interior_channel])
        if computed:
            self.confidence[:, columns] = (highest * 255 + 0.5).clip(0, 255)
            self.total.add(block, highest)


def _predictions(
    engine: Engine, view: SlideView, tiles: Sequence[Tile], kept: deque[npt.NDArray[np.uint8]] | None
) -> Iterator[Probabilities]:
    """Outputs of each tile, in order; tiles are read and computed ahead, and their pixels added to ``kept``."""
    with ThreadPoolExecutor(_READERS) as readers:
        waiting = iter(tiles)
        reading: deque[Future[npt.NDArray[np.uint8]]] = deque()

        def read_ahead(count: int) -> None:
            for tile in islice(waiting, count):
                reading.append(readers.submit(view.read, tile.rows.input, tile.columns.input))

        def in_order() -> Iterator[npt.NDArray[np.uint8]]:
            read_ahead(2 * engine.batch)
            while reading:
                pixels = reading.popleft().result()
                read_ahead(1)
                if kept is not None:
                    kept.append(pixels)
                yield pixels

        yield from engine.predictions(in_order())


def _final(spans: Sequence[Span], number: int, length: int) -> int:
    """Pixels of a span, from its inner start on, that the next span does not contribute to."""
    end = spans[number + 1].inner_start if number + 1 < len(spans) else length
    return end - spans[number].inner_start
