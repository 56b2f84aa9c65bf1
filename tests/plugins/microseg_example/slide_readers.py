"""A slide reader for NumPy files: RGB pixels (H, W, 3), mapped into memory."""

from pathlib import Path

import numpy as np

from microseg.slides.slide import ArraySlide


class NumpyReader:
    """Opens ``.npy`` files of RGB pixels."""

    priority = 60
    suffixes = (".npy",)

    def can_open(self, path: Path) -> bool:
        """Whether the file begins as NumPy files do."""
        with path.open("rb") as file:
            return file.read(6) == b"\x93NUMPY"

    def open(self, path: Path) -> ArraySlide:
        """Map the file into memory."""
        return ArraySlide(np.load(path, mmap_mode="r", allow_pickle=False), path, mpp=None)
