"""An engine that counts its calls, and the files of a folder, for the tests of batches."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from microseg.inference.engine import Engine

__all__ = ["Counting", "visible"]


class Counting(Engine):
    """Counts segmented images, and can interrupt the process."""

    calls = 0
    stop_at: int | None = None

    def outputs(self, image: npt.NDArray[np.uint8], mpp: float | None = None) -> npt.NDArray[np.float32]:
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        return super().outputs(image, mpp)


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}
