"""The interface between `Engine` and the ways to compute a network on a device.

The engine knows this interface only. `pytorch` works on every device and uses public PyTorch only. `cpu` is faster on
CPUs, but relies on TorchScript and a private operator of PyTorch; where these are missing, `pytorch` replaces it.
"""

import logging
from concurrent.futures import Future
from typing import Protocol

import torch

from microseg.inference.backends.pytorch import PyTorchBackend, Tiles, optimized_copy, with_context
from microseg.models.network import PyramidSegmenter

__all__ = ["Backend", "create_backend"]

_log = logging.getLogger(__name__)


class Backend(Protocol):
    """Computes the outputs of batches of tiles (class probabilities, maps of the head) with one network on one device.

    Attributes:
        device: Where the outputs are.
        parallel_tiles: Calls that are computed at the same time.
        call_size: Largest number of tiles that one call should have.
    """

    device: torch.device
    parallel_tiles: int
    call_size: int

    def submit(self, tiles: Tiles) -> "Future[torch.Tensor]":
        """Compute outputs in another thread, while the caller prepares the next tiles.

        Args:
            tiles: RGB tiles of one size, 0..255.

        Shape:
            B tiles (h, w, 3) → (B, K + M, h, w), float32, on the device
        """
        ...

    def predict(self, tiles: Tiles) -> torch.Tensor:
        """Compute outputs in the calling thread. On CUDA the device may still be computing when this returns."""
        ...


def create_backend(
    network: PyramidSegmenter,
    *,
    device: torch.device,
    batch_size: int,
    half: bool,
    compiled: bool,
    optimize: bool = True,
    context: tuple[int, int] | None = None,
) -> Backend:
    """Prepare a network for inference with the fastest backend that this installation of PyTorch supports.

    The network is not changed.

    Args:
        network: See `Engine`.
        device: See `Engine`.
        batch_size: See `Engine`.
        half: See `Engine`.
        compiled: See `Engine`.
        optimize: See `Engine`.
        context: Window and halo of the pyramid pooling in pixels of the image, for tiles that are larger than the
            window; None: the pooling sees the whole tile.
    """
    if not optimize:
        return PyTorchBackend(network.to(device), device=device, batch_size=batch_size, half=half)
    if device.type == "cpu":
        try:
            from microseg.inference.backends.cpu import CpuBackend

            return CpuBackend(network, batch_size=batch_size, half=half, context=context)
        except (ImportError, AttributeError) as error:
            _log.warning(
                "The CPU backend is not supported by PyTorch %s (%s): using plain PyTorch.", torch.__version__, error
            )
    copied = with_context(optimized_copy(network, device), context)
    return PyTorchBackend(copied, device=device, batch_size=batch_size, half=half, compiled=compiled)
