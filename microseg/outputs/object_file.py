"""Finished objects in a temporary file: their sums and outlines, read back in the order of their first pixels."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import SpooledTemporaryFile

import numpy as np
import numpy.typing as npt
import shapely

from microseg.outputs.object_sums import ObjectSums

__all__ = ["FinishedObjects", "ObjectFile"]

_BATCH = 4096  # objects read back at once
_BATCH_BYTES = 2**25  # of outlines read back at once; a single outline may have more
_IN_MEMORY = 2**24  # bytes before they are moved to a temporary file

Polygons = npt.NDArray[np.object_]

Places = npt.NDArray[np.int64]
"""Position and length of outlines in the file, (n, 2)."""


@dataclass(frozen=True)
class FinishedObjects:
    """Some finished objects, with all or some of their outlines.

    Attributes:
        first: Number of the first of them, from 0, in the order of the objects' first pixels.
        sums: Sums over the pixels of each object; none where only further outlines of the object before follow.
        owners: Number of the object of each outline, from 0.
        parts: Number of each outline among those of its object.
        stored: The outlines, or their WKB.
        whole_hulls: Convex hulls of the objects that have further outlines, by their places among these.
    """

    first: int
    sums: ObjectSums
    owners: npt.NDArray[np.int64]
    parts: npt.NDArray[np.int64]
    stored: npt.NDArray[np.object_] | list[bytes | None]
    whole_hulls: Mapping[int, shapely.Geometry] = field(default_factory=dict)

    @cached_property
    def polygons(self) -> Polygons:
        """The outlines; None where none were asked for."""
        if isinstance(self.stored, list):
            outlines: Polygons = shapely.from_wkb(np.array(self.stored, np.object_))
            return outlines
        return self.stored

    def hulls(self) -> npt.NDArray[np.object_]:
        """Convex hull of each of these objects."""
        hulls: npt.NDArray[np.object_] = shapely.convex_hull(self.polygons[: len(self.sums)])
        for row, hull in self.whole_hulls.items():
            hulls[row] = hull
        return hulls


@dataclass
class ObjectFile:
    """Sums and outlines of objects; in memory are about 30 bytes for each.

    Args:
        folder: Folder of the temporary file; None for the system's.
        columns: Number of sums.

    Attributes:
        order: Order of the objects' first pixels, as indices of the order in which they were written.
        indices: Class index of each object, in the order of their first pixels, after `finish`.
    """

    folder: Path | None
    columns: int
    order: npt.NDArray[np.int64] = field(init=False)
    indices: npt.NDArray[np.uint8] = field(init=False)

    def __post_init__(self) -> None:
        folder = None if self.folder is None else str(self.folder)
        self._file = SpooledTemporaryFile(_IN_MEMORY, dir=folder)  # noqa: SIM115 (closed by `close`)
        self._end = 0
        self._firsts: list[npt.NDArray[np.int64]] = []
        self._indices: list[npt.NDArray[np.uint8]] = []
        self._places: list[npt.NDArray[np.int64]] = []  # of the sums, and length of the outline after them
        self._further: dict[int, tuple[Sequence[Places], shapely.Geometry]] = {}  # by index: more outlines, hull
        self._count = 0
        self._held: tuple[ObjectSums, Polygons] | None = None  # of all objects, where they were few

    def write_outlines(self, polygons: Sequence[shapely.Polygon]) -> Places:
        """Write outlines of an object that is not finished."""
        outlines = shapely.to_wkb(np.array(polygons, np.object_)).tolist()
        places = [(self._write(outline), len(outline)) for outline in outlines]
        return np.array(places, np.int64).reshape(-1, 2)

    def read_outline(self, place: Places) -> shapely.Polygon:
        """An outline from `write_outlines`, whose place is (2,)."""
        outline: shapely.Polygon = shapely.from_wkb(self._read_at(*place.tolist()))
        return outline

    def write_objects(
        self,
        indices: npt.NDArray[np.uint8],
        firsts: npt.NDArray[np.int64],
        sums: ObjectSums,
        wkb: npt.NDArray[np.object_] | None,
    ) -> npt.NDArray[np.int64]:
        """Write finished objects with one outline each.

        Args:
            indices: Class index of each object, (N,).
            firsts: Position of its first pixel, (N,).
            sums: Its sums, (N, columns).
            wkb: Its outline as WKB, (N,); None without outlines.

        Returns:
            Index of each object, in the order of writing.
        """
        outlines = [b""] * len(sums) if wkb is None else wkb.tolist()
        rows = np.ascontiguousarray(sums, np.float64).view(f"V{8 * self.columns}").ravel().tolist()
        lengths = np.fromiter(map(len, outlines), np.int64, len(outlines))
        ends = (lengths + 8 * self.columns).cumsum()
        start = self._write(b"".join(itertools.chain.from_iterable(zip(rows, outlines, strict=True))))
        self._places.append(np.stack([start + ends - lengths - 8 * self.columns, lengths], axis=1))
        self._firsts.append(firsts)
        self._indices.append(indices)
        self._count += len(sums)
        return np.arange(self._count - len(sums), self._count)

    def write_all(
        self,
        indices: npt.NDArray[np.uint8],
        firsts: npt.NDArray[np.int64],
        sums: ObjectSums,
        polygons: Polygons | None,
    ) -> None:
        """Write all objects at once, as `write_objects`, but with polygons. A few are kept in memory."""
        if len(sums) > _BATCH:
            self.write_objects(indices, firsts, sums, None if polygons is None else shapely.to_wkb(polygons))
            return
        self._firsts.append(firsts)
        self._indices.append(indices)
        self._held = sums, np.full(len(sums), None) if polygons is None else polygons

    def add_outlines(self, number: int, places: Sequence[Places], hull: shapely.Geometry) -> None:
        """State further outlines of an object that was written, and the convex hull of all of them."""
        self._further[number] = (places, hull)

    def finish(self) -> None:
        """Order the objects."""
        firsts = np.concatenate(self._firsts) if self._firsts else np.zeros(0, np.int64)
        self._firsts.clear()
        self.order = firsts.argsort(kind="stable")
        self.indices = (np.concatenate(self._indices) if self._indices else np.zeros(0, np.uint8))[self.order]
        places = np.concatenate(self._places) if self._places else np.zeros((0, 2), np.int64)
        self._places = [places]
        self._indices.clear()

    def read(self) -> Iterator[FinishedObjects]:
        """All objects in order, some at a time; at least once, which may be none."""
        if self._held is not None:
            sums, polygons = self._held[0][self.order], self._held[1][self.order]
            numbers = np.arange(len(sums))
            yield FinishedObjects(0, sums, numbers, np.zeros_like(numbers), polygons)
            return
        start, total = 0, len(self.order)
        places = self._places[0]
        while True:
            stop = min(total, start + _BATCH)
            lengths = places[self.order[start:stop], 1].cumsum()
            stop = start + max(int(np.searchsorted(lengths, _BATCH_BYTES, side="right")), min(1, total - start))
            yield self._read(start, stop)
            for number in range(start, stop):
                yield from self._read_further(number)
            start = stop
            if start >= total:
                return

    def close(self) -> None:
        """Remove the temporary file."""
        self._file.close()

    def _read(self, start: int, stop: int) -> FinishedObjects:
        numbers, size = self.order[start:stop], 8 * self.columns
        places, lengths = self._places[0][numbers].T
        begin, end = int(places.min(initial=self._end)), int((places + size + lengths).max(initial=0))
        if end - begin <= 2 * _BATCH_BYTES:  # objects were written nearly in this order
            self._file.seek(begin)
            data = self._file.read(max(0, end - begin))
            records = [
                data[at - begin : at - begin + size + more]
                for at, more in zip(places.tolist(), lengths.tolist(), strict=True)
            ]
        else:
            records = [
                self._read_at(at, size + more) for at, more in zip(places.tolist(), lengths.tolist(), strict=True)
            ]
        sums = np.frombuffer(b"".join(record[:size] for record in records), np.float64).reshape(-1, self.columns)
        outlines = [record[size:] or None for record in records]
        hulls = {
            row: self._further[number][1] for row, number in enumerate(numbers.tolist()) if number in self._further
        }
        parts = np.zeros(stop - start, np.int64)
        return FinishedObjects(start, sums.copy(), np.arange(start, stop), parts, outlines, hulls)

    def _read_further(self, number: int) -> Iterator[FinishedObjects]:
        """Further outlines of an object, some at a time."""
        places = self._further.get(int(self.order[number]), ((), None))[0]
        for part, place in enumerate(itertools.chain.from_iterable(places), 1):
            polygons = np.array([self.read_outline(place)], np.object_)
            nothing = np.zeros((0, self.columns))
            yield FinishedObjects(number + 1, nothing, np.array([number]), np.array([part]), polygons)

    def _read_at(self, place: int, length: int) -> bytes:
        self._file.seek(place)
        return self._file.read(length)

    def _write(self, data: bytes) -> int:
        place = self._end
        self._file.seek(place)
        self._file.write(data)
        self._end += len(data)
        return place
