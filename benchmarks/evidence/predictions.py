"""Predictions of a network, each computed once and stored: criteria can be added without computing them again."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from microseg.files import atomic_write
from microseg.inference.engine import Engine
from microseg.models.network import PyramidSegmenter

__all__ = ["StoredPredictions"]

_STEPS = 255  # of a probability


@dataclass
class StoredPredictions:
    """Probabilities of a network.

    Args:
        folder: Folder of its predictions.
        build: Creates the network, if a prediction is missing.
    """

    folder: Path
    build: Callable[[], PyramidSegmenter]

    @cached_property
    def engine(self) -> Engine:
        """The prepared network."""
        return Engine(self.build())

    def probabilities(self, image: npt.NDArray[np.uint8], mpp: float | None = None) -> npt.NDArray[np.float32]:
        """Class probabilities of an image, rounded to 8 bits; see `Engine.probabilities`."""
        key = hashlib.sha256(f"{image.shape} {mpp}".encode() + np.ascontiguousarray(image).tobytes()).hexdigest()
        file = self.folder / f"{key[:32]}.npz"
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            values = (self.engine.probabilities(image, mpp) * _STEPS).round().astype(np.uint8)
            with atomic_write(file) as part, part.open("wb") as stream:
                np.savez_compressed(stream, values)
        with np.load(file) as stored:
            return np.asarray(stored["arr_0"].astype(np.float32) / _STEPS)
