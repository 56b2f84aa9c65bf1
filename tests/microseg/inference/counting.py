"""An engine that the tests of batches watch, and what is in a folder."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from microseg.inference.engine import Engine

__all__ = ["Counting", "visible"]


class Counting(Engine):
    """Counts how often the network was asked, and can be made to stop the process."""

    calls = 0
    stop_at: int | None = None

    def probabilities(self, image: npt.NDArray[np.uint8], mpp: float | None = None) -> npt.NDArray[np.float32]:
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        return super().probabilities(image, mpp)


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
