"""Numbers of the objects at each pixel, kept in a temporary file until all objects are known."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import SpooledTemporaryFile

import numpy as np
import numpy.typing as npt

from microseg.threads import Threads

__all__ = ["ObjectNumbers", "pack_labels"]

_IN_MEMORY = 2**24  # bytes before they are moved to a temporary file
_FASTEST = 1  # zlib level


class ObjectNumbers:
    """Preliminary numbers of pieces of an image, and what they mean once all objects are known.

    Args:
        width: Width of the image.
        folder: Folder of the temporary file; None for the system's.
    """

    def __init__(self, width: int, folder: Path | None) -> None:
        self._width = width
        self._file = SpooledTemporaryFile(_IN_MEMORY, dir=None if folder is None else str(folder))  # noqa: SIM115
        self._pieces: list[tuple[int, int]] = []  # length in the file, first number
        self._meaning = np.zeros(2**10, np.int32)  # index + 1 of the object of a preliminary number, 0 for none
        self._into = np.zeros(2**10, np.int32)  # preliminary number of the same object that stands for it, 0 for none

    def add(self, labels: bytes, first: int) -> None:
        """Add the next rows, from `pack_labels`; ``first`` is the preliminary number of label 1."""
        self._file.write(labels)
        self._pieces.append((len(labels), first))

    def join(self, number: int, into: int) -> None:
        """State that two preliminary numbers are of one object, which the second one stands for from now on."""
        self._into = _long_enough(self._into, number)
        self._into[number] = into

    def finish(self, numbers: npt.NDArray[np.int64], indices: npt.NDArray[np.int64]) -> None:
        """State which objects preliminary numbers, and those that they stand for, are of; both (N,)."""
        if len(numbers):
            self._meaning = _long_enough(self._meaning, int(numbers.max()))
            self._meaning[numbers] = indices + 1

    def read(self, order: npt.NDArray[np.int64], threads: Threads) -> Iterator[npt.NDArray[np.int32]]:
        """The rows in order, with the final numbers of the objects, from 1.

        Args:
            order: Index of each object, in the order of their final numbers.
            threads: Threads that read ahead.
        """
        final = np.zeros(len(order) + 1, np.int32)
        final[order + 1] = np.arange(1, len(order) + 1)
        count = max(len(self._into), len(self._meaning))
        into, known = (np.pad(it, (0, count - len(it))) for it in (self._into, self._meaning))
        stands = np.where(into > 0, into, np.arange(count, dtype=np.int32))
        while (further := stands[stands] != stands).any():
            stands[further] = stands[stands[further]]
        known = final[known][stands]

        def unpack(piece: tuple[bytes, int]) -> npt.NDArray[np.int32]:
            labels = np.frombuffer(zlib.decompress(piece[0]), np.int32).reshape(-1, self._width)
            count = int(labels.max(initial=0))
            meaning = np.zeros(count + 1, np.int32)
            of_piece = known[piece[1] : piece[1] + count]
            meaning[1 : 1 + len(of_piece)] = of_piece
            return meaning[labels]

        self._file.seek(0)
        return threads.map(unpack, ((self._file.read(length), first) for length, first in self._pieces))

    def close(self) -> None:
        """Remove the temporary file."""
        self._file.close()


def pack_labels(labels: npt.NDArray[np.int32]) -> bytes:
    """Rows of labels, (n, W), as `ObjectNumbers` keeps them."""
    return zlib.compress(labels.tobytes(), _FASTEST)


def _long_enough(values: npt.NDArray[np.int32], number: int) -> npt.NDArray[np.int32]:
    """An array that has that index, twice as long where it had not; new values are 0."""
    if number < len(values):
        return values
    return np.concatenate([values, np.zeros(max(number + 1 - len(values), len(values)), np.int32)])
