"""The mask of a slide, computed strip by strip from top to bottom.

Reading, the network and the processing of strips overlap. In memory are a few tiles, and the rows of the slide in which
two rows of tiles are blended.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from microseg.cpu import available_cores
from microseg.inference.engine import Engine
from microseg.inference.reduction import HostCopy, classify
from microseg.inference.tiling import Span, Tile
from microseg.outputs.image_summary import ConfidenceSums
from microseg.outputs.writers import MaskStrip
from microseg.slides.slide import SlideView
from microseg.threads import results_in_order

__all__ = ["reader_count", "stream_mask"]

_READERS = 2  # threads; where the device is CUDA, one for each core of the process


def reader_count(engine: Engine) -> int:
    """Threads that read a slide."""
    return max(_READERS, available_cores() - 1) if engine.device.type == "cuda" else _READERS


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
    chosen = dict.fromkeys(tile for tile in plan if selected(tile))  # a set that keeps the order
    pixels: deque[npt.NDArray[np.uint8]] | None = deque() if with_image else None
    computed = _predictions(engine, view, list(chosen), pixels)
    above: list[torch.Tensor | None] = [None] * len(plan.columns)
    waiting: _Row | None = None
    for number, span in enumerate(plan.rows):
        final = _final(plan.rows, number, view.height)
        image = np.full((final, view.width, 3), 255, np.uint8) if with_image else None
        row = _Row(engine, span, final, view.width, image)
        for column, columns in enumerate(plan.columns):
            predicted, width = None, _final(plan.columns, column, view.width)
            if Tile(span, columns) in chosen:
                predicted = next(computed)
                if image is not None and pixels is not None:
                    inner = pixels.popleft()[span.inner_of_tile, columns.inner_of_tile]
                    image[:, columns.inner_start : columns.inner_start + width] = inner[:final, :width]
            above[column] = row.add(columns, width, predicted, above[column])
        row.copy_to_host()
        if engine.device.type != "cuda":
            yield row.strip(confidence)
            continue
        if waiting is not None:
            yield waiting.strip(confidence)
        waiting = row  # while it is copied, the device computes the next one
    if waiting is not None:
        yield waiting.strip(confidence)


class _Row:
    """Blends the tiles of one row of tiles on the device, from left to right. None stands for background only.

    Args:
        engine: The network.
        span: Rows of the tiles.
        final: Rows that no later row of tiles contributes to.
        width: Width of the mask.
        image: Pixels of these rows; None if they are not needed.
    """

    def __init__(self, engine: Engine, span: Span, final: int, width: int, image: npt.NDArray[np.uint8] | None) -> None:
        self._engine, self._span, self._final, self._image = engine, span, final, image
        self._interior = engine.interior
        self._left: torch.Tensor | None = None  # contribution of the previous tile to the shared columns
        self._mask = torch.zeros((final, width), dtype=torch.uint8, device=engine.device)
        self._confidence = torch.zeros_like(self._mask)
        self._inside = None if self._interior is None else torch.zeros_like(self._mask)
        self._sums = [torch.zeros((1, 2), device=engine.device)]
        self._computed = 0  # pixels
        self._copies: HostCopy | None = None

    @torch.inference_mode()
    def add(
        self, span: Span, final: int, predicted: torch.Tensor | None, above: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Add a tile.

        Args:
            span: Columns of the tile.
            final: Number of columns that no later tile of this row contributes to.
            predicted: Outputs, (K + M, h, w); None for a tile that is not computed.
            above: Contribution of the row of tiles above to the shared rows, (K + M, fade, final).

        Returns:
            Contribution of this row to the rows shared with the row of tiles below, (K + M, fade, final).
        """
        if predicted is None and self._left is None and above is None:
            return None
        down, down_complement = self._engine.weights.of(self._span)
        across, across_complement = self._engine.weights.of(span)
        weights = down[:, None] * across  # (h', w')
        if predicted is None:
            block = weights.new_zeros((len(self._engine.channels), *weights.shape))
            block[0] = weights
        else:
            block = predicted[:, self._span.inner_of_tile, span.inner_of_tile] * weights  # (K + M, h', w')
        if span.fade_in:
            shared = block[:, :, : span.fade_in]
            if self._left is None:
                shared[0] += down[:, None] * across_complement[: span.fade_in]
            else:
                shared += self._left
        self._left = None if predicted is None else block[:, :, final:].clone()
        block = block[:, :, :final]
        if self._span.fade_in:
            shared = block[:, : self._span.fade_in]
            if above is None:
                shared[0] += down_complement[: self._span.fade_in, None]
            else:
                shared += above
        self._finish(block[:, : self._final], slice(span.inner_start, span.inner_start + final), predicted is not None)
        return block[:, self._final :].clone() if self._span.fade_out else None

    def copy_to_host(self) -> None:
        """Start to copy the finished rows to the host."""
        sums = torch.cat(self._sums)
        self._copies = HostCopy([self._mask, self._confidence, self._inside, sums])

    def strip(self, confidence: ConfidenceSums) -> MaskStrip:
        """The finished rows; adds to the sums."""
        assert self._copies is not None
        (mask, certain, interior), sums = self._engine.finish(self._copies, self._computed)
        confidence.add_sums(sums)
        if self._engine.device.type == "cuda":  # pinned memory is given back
            mask, certain, interior = mask.copy(), *(None if it is None else it.copy() for it in (certain, interior))
        return MaskStrip(self._span.inner_start, mask, certain, interior=interior, image=self._image)

    def _finish(self, outputs: torch.Tensor, columns: slice, computed: bool) -> None:
        reduced = classify(outputs[None], len(self._engine.classes), self._interior)
        self._mask[:, columns] = reduced.mask[0]
        if self._inside is not None and reduced.interior is not None:
            self._inside[:, columns] = reduced.interior[0]
        if computed:
            self._confidence[:, columns] = reduced.confidence[0]
            self._sums.append(reduced.sums)
            self._computed += reduced.mask.numel()


def _predictions(
    engine: Engine, view: SlideView, tiles: Sequence[Tile], kept: deque[npt.NDArray[np.uint8]] | None
) -> Iterator[torch.Tensor]:
    """Outputs of each tile, in order; tiles are read and computed ahead, and their pixels added to ``kept``."""
    count = reader_count(engine)
    with ThreadPoolExecutor(count) as readers:

        def read(tile: Tile) -> Future[npt.NDArray[np.uint8]]:
            return readers.submit(view.read, tile.rows.input, tile.columns.input)

        def in_order() -> Iterator[npt.NDArray[np.uint8]]:
            for pixels in results_in_order(read, tiles, max(2 * engine.batch, count)):
                if kept is not None:
                    kept.append(pixels)
                yield pixels

        yield from engine.tile_outputs(in_order())


def _final(spans: Sequence[Span], number: int, length: int) -> int:
    """Pixels of a span, from its inner start on, that the next span does not contribute to."""
    end = spans[number + 1].inner_start if number + 1 < len(spans) else length
    return end - spans[number].inner_start
