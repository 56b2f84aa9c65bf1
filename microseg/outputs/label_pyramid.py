"""A label image with all its levels, written from rows that come one after another (OME-TIFF)."""

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt
import tifffile

from microseg.outputs.palette import color_table

__all__ = ["LabelPyramid"]

_TILE = 512
_COMPRESSION = 5  # of 9


class _Level:
    """Tiles of one level, compressed as soon as their rows are complete."""

    def __init__(self, width: int, height: int, spool: Path) -> None:
        self.width, self.height = width, height
        self._spool, self._file = spool, spool.open("wb")
        self._lengths: list[int] = []
        self._rows = np.zeros((_TILE, -(-width // _TILE) * _TILE), np.uint8)
        self._filled = 0
        self._empty = zlib.compress(bytes(_TILE * _TILE), _COMPRESSION)

    def add(self, rows: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.uint8]]:
        """Take rows (n, W), and give every second pixel of each row of tiles that they complete."""
        while len(rows):
            taken = min(len(rows), _TILE - self._filled)
            self._rows[self._filled : self._filled + taken, : self.width] = rows[:taken]
            self._filled, rows = self._filled + taken, rows[taken:]
            if self._filled == _TILE:
                yield self.flush()

    def flush(self) -> npt.NDArray[np.uint8]:
        """Write what is there as a row of tiles, and give every second pixel of it."""
        half = self._rows[: self._filled : 2, : self.width : 2].copy()
        for left in range(0, self._rows.shape[1], _TILE):
            tile = self._rows[:, left : left + _TILE]
            data = zlib.compress(tile.tobytes(), _COMPRESSION) if tile.any() else self._empty
            self._file.write(data)
            self._lengths.append(len(data))
        self._rows[:] = 0
        self._filled = 0
        return half

    @property
    def filled(self) -> int:
        """Rows that are not in a tile yet."""
        return self._filled

    def tiles(self) -> Iterator[bytes]:
        """All tiles, compressed, row by row."""
        self.close()
        with self._spool.open("rb") as file:
            for length in self._lengths:
                yield _read(file, length)

    def close(self) -> None:
        self._file.close()


class LabelPyramid:
    """Collects the rows of a label image, then writes it with levels of half the size each, down to one tile.

    Smaller levels hold every second pixel of the one before: a class index cannot be averaged.

    Args:
        width: of the label image.
        height: of the label image.
        folder: for temporary files, which are left behind.
    """

    def __init__(self, width: int, height: int, folder: Path) -> None:
        self._levels: list[_Level] = []
        while not self._levels or max(self._levels[-1].width, self._levels[-1].height) > _TILE:
            self._levels.append(_Level(width, height, folder / f"level{len(self._levels)}.spool"))
            width, height = -(-width // 2), -(-height // 2)

    def add(self, rows: npt.NDArray[np.uint8]) -> None:
        """Add the next rows, (n, W)."""
        self._add(0, rows)

    def write(self, path: Path, *, mpp: float | None, classes: Sequence[str]) -> None:
        """Write the file, when all rows are there.

        Args:
            path: of the file.
            mpp: microns along one pixel of the label image; None if unknown.
            classes: names of the classes, put beside the image.
        """
        for number, level in enumerate(self._levels):
            if level.filled:
                self._add(number + 1, level.flush())
        colors = color_table().T.astype(np.uint16) * 257  # (3, 256), 0..65535
        options: dict[str, Any] = {"tile": (_TILE, _TILE), "compression": "zlib", "dtype": np.uint8}
        options |= {"photometric": "palette", "colormap": colors}
        metadata: dict[str, Any] = {"axes": "YX", "MapAnnotation": dict(enumerate_classes(classes))}
        if mpp is not None:
            metadata |= {f"PhysicalSize{axis}": mpp for axis in "XY"}
            metadata |= {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
        with tifffile.TiffWriter(path, ome=True, bigtiff=True) as tiff:
            for number, level in enumerate(self._levels):
                if mpp is not None:
                    dots = 1e4 / mpp / 2**number
                    options |= {"resolution": (dots, dots), "resolutionunit": "CENTIMETER"}
                first: dict[str, Any] = {"subifds": len(self._levels) - 1, "metadata": metadata, "software": "microseg"}
                others: dict[str, Any] = {"subfiletype": 1}
                tiff.write(level.tiles(), shape=(level.height, level.width), **options, **(others if number else first))

    def close(self) -> None:
        """Close the temporary files."""
        for level in self._levels:
            level.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _add(self, number: int, rows: npt.NDArray[np.uint8]) -> None:
        if number == len(self._levels):
            return
        for half in self._levels[number].add(rows):
            self._add(number + 1, half)


def enumerate_classes(classes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What each label stands for."""
    return ((str(index), name) for index, name in enumerate(classes))


def _read(file: BinaryIO, length: int) -> bytes:
    data = file.read(length)
    assert len(data) == length, "the spool holds all tiles"
    return data
