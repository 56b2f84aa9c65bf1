"""Numbers of the objects at each pixel, kept in a temporary file until all objects are known."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import SpooledTemporaryFile

import numpy as np
import numpy.typing as npt

__all__ = ["ObjectNumbers"]

_IN_MEMORY = 2**24  # bytes before they are moved to a temporary file
_FASTEST = 1  # zlib level


class ObjectNumbers:
    """Preliminary numbers of pieces of an image, and what they mean once all objects are known.

    Args:
        folder: Folder of the temporary file; None for the system's.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file = SpooledTemporaryFile(_IN_MEMORY, dir=None if folder is None else str(folder))  # noqa: SIM115
        self._pieces: list[tuple[int, int, tuple[int, ...]]] = []  # length in the file, first number, shape
        self._meaning = np.zeros(2**10, np.int32)  # index + 1 of the object of a preliminary number, 0 for none
        self._into = np.zeros(2**10, np.int32)  # preliminary number of the same object that stands for it, 0 for none

    def add(self, labels: npt.NDArray[np.int32], first: int) -> None:
        """Add the next rows, (n, W); ``first`` is the preliminary number of label 1."""
        data = zlib.compress(labels.tobytes(), _FASTEST)
        self._file.write(data)
        self._pieces.append((len(data), first, labels.shape))

    def join(self, number: int, into: int) -> None:
        """State that two preliminary numbers are of one object, which the second one stands for from now on."""
        self._into = _long_enough(self._into, number)
        self._into[number] = into

    def finish(self, number: int, index: int) -> None:
        """State which object a preliminary number, and those that it stands for, are of."""
        self._meaning = _long_enough(self._meaning, number)
        self._meaning[number] = index + 1

    def read(self, order: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int32]]:
        """The rows in order, with the final numbers of the objects, from 1.

        Args:
            order: Index of each object, in the order of their final numbers.
        """
        final = np.zeros(len(order) + 1, np.int32)
        final[order + 1] = np.arange(1, len(order) + 1)
        count = max(len(self._into), len(self._meaning))
        into, known = (np.pad(it, (0, count - len(it))) for it in (self._into, self._meaning))
        stands = np.where(into > 0, into, np.arange(count, dtype=np.int32))
        while (further := stands[stands] != stands).any():
            stands[further] = stands[stands[further]]
        known = final[known][stands]
        self._file.seek(0)
        for length, first, shape in self._pieces:
            labels = np.frombuffer(zlib.decompress(self._file.read(length)), np.int32).reshape(shape)
            count = int(labels.max(initial=0))
            meaning = np.zeros(count + 1, np.int32)
            of_piece = known[first : first + count]
            meaning[1 : 1 + len(of_piece)] = of_piece
            yield meaning[labels]

    def close(self) -> None:
        """Remove the temporary file."""
        self._file.close()


def _long_enough(values: npt.NDArray[np.int32], number: int) -> npt.NDArray[np.int32]:
    """An array that has that index, twice as long where it had not; new values are 0."""
    if number < len(values):
        return values
    return np.concatenate([values, np.zeros(max(number + 1 - len(values), len(values)), np.int32)])
