"""An engine that counts its calls, and the files of a folder, for the tests of batches."""

from concurrent.futures import Future
from pathlib import Path

import numpy as np
import numpy.typing as npt

from microseg.inference.engine import Engine
from microseg.inference.prediction import Prediction

__all__ = ["Counting", "visible"]


class Counting(Engine):
    """Counts segmented images, and can interrupt the process."""

    calls = 0
    stop_at: int | None = None

    def submit(
        self, image: npt.NDArray[np.uint8], size: tuple[int, int] | None = None, *, probabilities: bool = False
    ) -> "Future[Prediction]":
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        return super().submit(image, size, probabilities=probabilities)


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}
