"""What is exported: the network with its softmax, for tiles of one size."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from microseg.errors import ModelError
from microseg.models.network import PyramidSegmenter
from microseg.models.softmax import SoftmaxNetwork

__all__ = ["TOLERANCE", "Exported", "SoftmaxNetwork", "check_same", "example_tile", "tile_probabilities"]

TOLERANCE = 1e-4
"""How far the probabilities of an exported graph may be from the network's: sums in another order, nothing else."""


@dataclass(frozen=True)
class Exported:
    """An exported model.

    Attributes:
        path: of the file.
        format: one of ``FORMATS``.
        tile: side of the tiles that it takes, in pixels.
        difference: largest difference of a probability from the network's, on an example.
    """

    path: Path
    format: str
    tile: int
    difference: float


def example_tile(tile: int) -> npt.NDArray[np.float32]:
    """A tile to compare on, the same each time: smooth colors with some noise.

    Shape:
        (1, 3, tile, tile), in 0..1
    """
    y, x = np.mgrid[:tile, :tile].astype(np.float32) / tile
    smooth = np.stack([0.6 + 0.3 * np.sin(9 * x), 0.5 + 0.3 * np.cos(7 * y), 0.6 + 0.3 * np.sin(5 * (x + y))])
    noise = np.random.default_rng(0).normal(0, 0.05, smooth.shape)
    return (smooth + noise).clip(0, 1).astype(np.float32)[None]


def tile_probabilities(network: PyramidSegmenter, tiles: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What the network itself gives.

    Shape:
        (B, 3, T, T), in 0..1 → (B, K, T, T)
    """
    with torch.inference_mode():
        return np.asarray(network.eval()(torch.from_numpy(tiles)).softmax(dim=1).numpy(), np.float32)


def check_same(name: str, given: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """The largest difference, if it is small enough.

    Raises:
        ModelError: it is not.
    """
    difference = float(np.abs(given - expected).max()) if given.shape == expected.shape else float("inf")
    if not difference <= TOLERANCE:
        raise ModelError(
            f"expected the {name} graph to give the network's probabilities to within {TOLERANCE}, they differ by "
            f"{difference:.2g}; export to another format, or report the encoder with which this happens"
        )
    return difference
