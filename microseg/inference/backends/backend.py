"""The interface between `Engine` and the ways to compute a network on a device.

The engine knows this interface only. `pytorch` works on every device and uses public PyTorch only. `cpu` is faster on
CPUs, but relies on TorchScript and a private operator of PyTorch; where these are missing, `pytorch` replaces it.
"""

import logging
from concurrent.futures import Future
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from microseg.inference.backends.pytorch import PyTorchBackend, optimized_copy
from microseg.models.network import PyramidSegmenter

__all__ = ["Backend", "create_backend"]

_log = logging.getLogger(__name__)


class Backend(Protocol):
    """Computes the outputs of batches of tiles (class probabilities, maps of the head) with one network on one device.

    Attributes:
        parallel_tiles: Calls that are computed at the same time.
        call_size: Largest number of tiles that one call should have.
    """

    parallel_tiles: int
    call_size: int

    def submit(self, tiles: npt.NDArray[np.uint8]) -> "Future[npt.NDArray[np.float32]]":
        """Compute outputs in another thread, while the caller prepares the next tiles.

        Args:
            tiles: RGB tiles of one size, 0..255.

        Shape:
            (B, h, w, 3) → (B, K + M, h, w)
        """
        ...


def create_backend(
    network: PyramidSegmenter,
    *,
    device: torch.device,
    batch_size: int,
    half: bool,
    compiled: bool,
    optimize: bool = True,
) -> Backend:
    """Prepare a network for inference with the fastest backend that this installation of PyTorch supports.

    The arguments are those of `Engine`; the network is not changed.
    """
    if not optimize:
        return PyTorchBackend(network.to(device), device=device, batch_size=batch_size, half=half)
    if device.type == "cpu":
        try:
            from microseg.inference.backends.cpu import CpuBackend

            return CpuBackend(network, batch_size=batch_size, half=half)
        except (ImportError, AttributeError) as error:
            _log.warning(
                "The CPU backend is not supported by PyTorch %s (%s): using plain PyTorch.", torch.__version__, error
            )
    return PyTorchBackend(
        optimized_copy(network, device), device=device, batch_size=batch_size, half=half, compiled=compiled
    )
