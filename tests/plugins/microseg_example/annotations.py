"""An annotation format: rectangles in a CSV file, one ``class,left,top,right,bottom`` in pixels per line."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt


class Rectangles:
    """Reads ``annotations/<image>.csv``; what is in no rectangle is background."""

    folder = "annotations"
    suffixes = (".csv",)

    def read(self, path: Path, size: tuple[int, int], classes: Sequence[str]) -> npt.NDArray[np.uint8]:
        """Draw the rectangles of a file: class indices (H, W)."""
        labels = np.zeros(size, np.uint8)
        with path.open(newline="") as file:
            for name, *box in csv.reader(file):
                left, top, right, bottom = map(int, box)
                labels[top:bottom, left:right] = classes.index(name)
        return labels
