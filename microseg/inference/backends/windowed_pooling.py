"""Pyramid pooling with a context of fixed size, so that tiles can be larger than what the network was trained to see.

The pyramid pooling module averages over its whole input. In a larger tile it would see more of the image than it does
in others, and its output would change. Here it sees windows of one size, which are cut and blended as `plan_spans` cuts
and blends tiles. Encoder and decoder, which take nearly all of the time, compute the overlaps of these windows once.
"""

import torch
from torch import nn

from microseg.inference.tiling import Span, plan_spans

__all__ = ["WindowedPooling", "default_block"]

_WINDOWS = 4  # along each side of what is computed at once on CUDA
_BYTES_PER_PIXEL = 4096  # free memory of a device for each pixel of a batch


class WindowedPooling(nn.Module):
    """Applies a pooling module to overlapping windows of its input.

    Args:
        pooling: The module; its output has the size of its input.
        window: Longest side of a window, in pixels of the input.
        halo: Half of the least overlap of two windows.

    Shape:
        (B, C, h, w) → (B, D, h, w)
    """

    def __init__(self, pooling: nn.Module, window: int, halo: int) -> None:
        super().__init__()
        self.pooling, self.window, self.halo = pooling, window, halo
        self._weights: dict[tuple[object, ...], torch.Tensor] = {}  # kept: a copy to a device waits for the device

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Blend the outputs of all windows."""
        count, height, width = x.shape[0], x.shape[2], x.shape[3]
        rows, columns = (plan_spans(int(it), tile=self.window, halo=self.halo, multiple=1) for it in (height, width))
        if len(rows) * len(columns) == 1:
            whole: torch.Tensor = self.pooling(x)
            return whole
        windows = [x[:, :, row.input, column.input] for row in rows for column in columns]
        pooled = self.pooling(torch.cat(windows)).split(count)  # one (B, D, window, window) for each window
        blended = x.new_zeros((count, pooled[0].shape[1], height, width))
        for number, part in enumerate(pooled):
            row, column = rows[number // len(columns)], columns[number % len(columns)]
            kept = part[:, :, row.inner_of_tile, column.inner_of_tile]
            blended[:, :, row.inner, column.inner] += kept * self._weights_of(row, column, x)
        return blended

    def _weights_of(self, row: Span, column: Span, x: torch.Tensor) -> torch.Tensor:
        key = (len(row.weights), row.fade_in, row.fade_out, len(column.weights), column.fade_in, column.fade_out)
        if (known := self._weights.get((*key, x.device, x.dtype))) is None:
            known = torch.from_numpy(row.weights[:, None] * column.weights[None, :]).to(x.device, x.dtype)
            self._weights[*key, x.device, x.dtype] = known
        return known


def default_block(device: torch.device, tile: int, halo: int, batch: int) -> int:
    """Side of what is computed at once: on CUDA several windows, as far as a batch of them fits the free memory.

    Args:
        device: The device.
        tile: Side of a window, in pixels.
        halo: Half of the overlap of two windows.
        batch: Blocks that are computed at once.

    Returns:
        Side in pixels; on other devices ``tile``.
    """
    if device.type != "cuda":
        return tile
    free = torch.cuda.mem_get_info(device)[0]
    pixels = free // _BYTES_PER_PIXEL // batch
    return tile + max(0, min(_WINDOWS - 1, (int(pixels**0.5) - tile) // (tile - 2 * halo))) * (tile - 2 * halo)
