"""Blending of tiles on the device: each pixel is the weighted mean of the tiles that have it."""

from collections.abc import Iterable

import torch

from microseg.inference.tiling import Span, TilePlan

__all__ = ["SpanWeights", "blend_tiles"]


class SpanWeights:
    """The weights of spans on a device; kept, as a copy to CUDA waits for the device.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._known: dict[tuple[int, int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def of(self, span: Span) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights of the kept pixels of a span, and their complement to one.

        Shape:
            each (span.inner_stop - span.inner_start,)
        """
        key = (len(span.weights), span.fade_in, span.fade_out)
        if (known := self._known.get(key)) is None:
            weights = torch.from_numpy(span.weights).to(self.device)
            known = self._known[key] = weights, 1 - weights
        return known


def blend_tiles(
    plan: TilePlan, outputs: Iterable[torch.Tensor], shape: tuple[int, ...], weights: SpanWeights
) -> torch.Tensor:
    """Blend the outputs of all tiles of an image.

    Args:
        plan: The tiles.
        outputs: Their outputs, in order.
        shape: Channels, height and width of the image.
        weights: The weights of spans.

    Shape:
        each (C, tile height, tile width) → (C, H, W)
    """
    total = torch.zeros(shape, device=weights.device)
    for tile, output in zip(plan, outputs, strict=True):
        kept = output[:, tile.rows.inner_of_tile, tile.columns.inner_of_tile]  # (C, h, w)
        rows, columns = weights.of(tile.rows)[0], weights.of(tile.columns)[0]
        total[:, tile.rows.inner, tile.columns.inner] += kept * (rows[:, None] * columns)
    return total
