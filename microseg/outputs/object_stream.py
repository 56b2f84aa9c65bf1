"""Objects of a mask that comes a few rows at a time: those that reach over several pieces are put together.

What is finished goes to a file, but for a row of figures an object; what is unfinished is kept.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt
import shapely

from microseg.outputs.measurements import SUMS, ObjectSums, sum_objects, tabulate
from microseg.outputs.outlines import Annotations, join_parts, label_objects, outline_parts

__all__ = ["ObjectStream", "StreamedObjects"]

_CONTEXT = 2  # rows above and below a piece, which its perimeters depend on
_PIXELS = 2**18  # of a piece, at most
_BATCH = 4096  # outlines read back at once

Rows = npt.NDArray[np.uint8]
Shares = npt.NDArray[np.uint8]


@dataclass
class _Open:
    """An object that may go on below.

    Attributes:
        index: of its class.
        first: place of its first pixel, counted row by row.
        sums: of its pixels so far.
        parts: its outline so far.
    """

    index: int
    first: int
    sums: ObjectSums
    parts: list[shapely.Polygon] = field(default_factory=list)

    def take(self, other: "_Open") -> None:
        """Take over all of another part of the same object."""
        self.first = min(self.first, other.first)
        self.sums += other.sums
        self.parts += other.parts


class ObjectStream:
    """Finds and measures objects in pieces of a mask, from top to bottom.

    Args:
        width: of the mask.
        spool: a file for outlines, to be made; it is left behind.
        outlines: whether outlines are wanted; without them objects are only counted and summed.

    Deviation:
        From `measure_objects`: where two parts of an object touch at a corner, and are joined only outside of a piece
        and the two rows around it, the perimeter does not know that they are one.
    """

    def __init__(self, width: int, spool: Path, *, outlines: bool = True) -> None:
        self._width, self._spool, self._outlines = width, spool, outlines
        self._file: BinaryIO = spool.open("wb")
        self._top = 0  # of the piece that waits
        self._above: tuple[Rows, Shares] | None = None  # context
        self._waiting: tuple[Rows, Shares] | None = None
        self._open: dict[int, _Open] = {}  # by any number of theirs that the next piece may name
        self._last = np.zeros(width, np.int64)  # numbers of the objects in the first row below the piece before
        self._next = 1
        self._rows: list[npt.NDArray[np.float64]] = []  # finished: class, first pixel, length of the outline, sums
        self._done = False

    def add(self, mask: Rows, certainty: Shares) -> None:
        """Add the next rows of the mask, (n, W), with the probability of each pixel's class in 255ths."""
        step = max(_CONTEXT, _PIXELS // self._width)
        for start in range(0, len(mask), step):
            self._add(mask[start : start + step], certainty[start : start + step])
        if self._waiting is not None:  # a part of all rows, which need not wait with it
            self._waiting = self._waiting[0].copy(), self._waiting[1].copy()

    def finish(self) -> "StreamedObjects":
        """All objects; nothing can be added afterwards."""
        if self._waiting is not None:
            self._take(self._waiting, None)
            self._waiting = None
        self.close()
        rows = np.concatenate(self._rows) if self._rows else np.zeros((0, 3 + len(SUMS)))
        lengths = rows[:, 2].astype(np.int64)
        places = np.stack([lengths.cumsum() - lengths, lengths], axis=1)
        rows[:, 3 + SUMS.index("certainty")] /= 255
        order = rows[:, 1].argsort(kind="stable")
        return StreamedObjects(rows[order, 0].astype(np.int64), rows[order, 3:], self._spool, places[order])

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _add(self, mask: Rows, certainty: Shares) -> None:
        if self._waiting is None:
            self._waiting = mask, certainty
        elif len(mask) < _CONTEXT:  # too few to be the context of those that wait
            self._waiting = np.concatenate([self._waiting[0], mask]), np.concatenate([self._waiting[1], certainty])
        else:
            self._take(self._waiting, (mask[:_CONTEXT], certainty[:_CONTEXT]))
            self._waiting = mask, certainty

    def _take(self, piece: tuple[Rows, Shares], below: tuple[Rows, Shares] | None) -> None:
        parts = [part for part in (self._above, piece, below) if part is not None]
        mask, certainty = (np.concatenate([part[which] for part in parts]) for which in (0, 1))
        start = 0 if self._above is None else len(self._above[0])
        rows = slice(start, start + len(piece[0]))
        labels = label_objects(mask)  # numbers of this piece; parts of one object may have several
        count = int(labels.max(initial=0))
        found = self._found(labels, mask, certainty, count, rows)
        numbers = np.arange(self._next, self._next + count)
        self._next += count
        ends = labels[rows.stop] if below is not None else np.zeros(self._width, np.int32)
        self._join(found, numbers, labels[rows.start], ends)
        self._last = np.where(ends > 0, numbers[ends - 1] if count else 0, 0)
        context = slice(max(0, rows.stop - _CONTEXT), rows.stop)
        self._above = mask[context].copy(), certainty[context].copy()
        self._top += len(piece[0])

    def _found(
        self, labels: npt.NDArray[np.int32], mask: Rows, certainty: Shares, count: int, rows: slice
    ) -> list[_Open]:
        """The part of each object that lies in the piece's own rows."""
        sums = sum_objects(labels, count, certainty, rows=rows, top=self._top - rows.start)
        inner = labels[rows]
        where = np.flatnonzero(inner)[::-1]
        firsts = np.full(count + 1, np.iinfo(np.int64).max)
        firsts[inner.ravel()[where]] = where + self._top * self._width  # of several the last is kept: the first pixel
        indices = np.zeros(count + 1, np.uint8)
        indices[labels.ravel()] = mask.ravel()
        objects = [
            _Open(int(index), int(first), row) for index, first, row in zip(indices[1:], firsts[1:], sums, strict=True)
        ]
        if self._outlines:
            for number, polygon in outline_parts(inner, self._top):
                objects[number - 1].parts.append(polygon)
        return objects

    def _join(
        self,
        found: list[_Open],
        numbers: npt.NDArray[np.int64],
        begins: npt.NDArray[np.int32],
        ends: npt.NDArray[np.int32],
    ) -> None:
        """Join what was open with what was found, and finish what does not go on."""
        owner: list[_Open] = list(found)
        members: dict[int, list[int]] = {id(one): [number] for number, one in enumerate(found)}
        pairs = np.stack([self._last, begins.astype(np.int64)])
        before = {id(one): one for one in self._open.values()}
        for old, new in np.unique(pairs[:, (pairs > 0).all(axis=0)], axis=1).T.tolist():
            older, newer = self._open[old], owner[new - 1]
            if older is newer:
                continue
            older.take(newer)
            moved = members.pop(id(newer))
            for number in moved:
                owner[number] = older
            members.setdefault(id(older), []).extend(moved)
            if id(newer) in before:
                del before[id(newer)]
                self._open = {key: older if one is newer else one for key, one in self._open.items()}
        alive = {id(owner[number - 1]) for number in np.unique(ends[ends > 0]).tolist()}
        everything = before | {id(one): one for one in owner}
        self._write([one for key, one in everything.items() if key not in alive and one.sums[0] > 0])
        self._open = {int(numbers[n - 1]): owner[n - 1] for n in np.unique(ends[ends > 0]).tolist()}

    def _write(self, finished: Sequence[_Open]) -> None:
        if not finished:
            return
        shapes = [b""] * len(finished)
        if self._outlines:
            shapes = shapely.to_wkb(np.array([join_parts(one.parts) for one in finished], np.object_)).tolist()
        self._file.writelines(shapes)
        facts = [(one.index, one.first, len(shape)) for one, shape in zip(finished, shapes, strict=True)]
        self._rows.append(np.column_stack([np.array(facts, np.float64), np.stack([one.sums for one in finished])]))


@dataclass(frozen=True)
class StreamedObjects:
    """All objects of a mask, in the order in which they are met row by row.

    Attributes:
        indices: (N,) of their classes.
        sums: (N, len(SUMS)) over their pixels.
        spool: file of their outlines.
        places: (N, 2), where each outline begins there, and its length.
    """

    indices: npt.NDArray[np.int64]
    sums: ObjectSums
    spool: Path
    places: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def outlines(self) -> Iterator[tuple[slice, npt.NDArray[np.object_]]]:
        """Polygons, some at a time: which, and (n,) of them."""
        with self.spool.open("rb") as file:
            for start in range(0, len(self), _BATCH):
                numbers = slice(start, min(start + _BATCH, len(self)))
                shapes = [_read_part(file, *place) for place in self.places[numbers].tolist()]
                yield numbers, shapely.from_wkb(np.array(shapes, np.object_))

    def write(
        self,
        classes: Sequence[str],
        *,
        image: str,
        mpp: float | None,
        step: tuple[float, float],
        source: str,
        table: Path | None,
        outlines: Path | None,
    ) -> None:
        """Write the table and the GeoJSON, some objects at a time.

        Args:
            classes: names of the classes.
            image: name for the table's first column.
            mpp: microns per pixel of the image; None if unknown.
            step: pixels of the image along one of the mask, across and down.
            source: what the objects were found in; see `feature_collection`.
            table: CSV to write; None: no table.
            outlines: GeoJSON to write; None: no outlines.
        """
        mean = (step[0] * step[1]) ** 0.5
        annotations = Annotations(classes, source, step)
        if table is not None:
            empty = tabulate(self.sums[:0], np.empty(0, np.object_), self.indices[:0], classes)
            empty.to_csv(table, index=False)
        with _GeoJson(outlines) as feature:
            for numbers, polygons in self.outlines():
                indices = self.indices[numbers]
                rows = tabulate(self.sums[numbers], polygons, indices, classes, image=image, mpp=mpp, step=mean)
                rows["label"] += numbers.start
                if table is not None:
                    rows.to_csv(table, mode="a", header=False, index=False, float_format="%.4f")
                if outlines is None:
                    continue
                columns = [column for column in rows.columns if column not in ("image", "label", "class")]
                figures = rows[columns].itertuples(index=False)
                for number, (polygon, index, row) in enumerate(
                    zip(polygons, indices, figures, strict=True), start=numbers.start + 1
                ):
                    measured = dict(zip(columns, row, strict=True))
                    feature(annotations.text(polygon, number, int(index), measured))


class _GeoJson:
    """Writes a FeatureCollection feature by feature; to nowhere without a path."""

    def __init__(self, path: Path | None) -> None:
        self._file = None if path is None else path.open("w", encoding="utf-8")
        self._separator = '{"type": "FeatureCollection", "features": ['

    def __enter__(self) -> Callable[[str], None]:
        return self._write

    def __exit__(self, *_error: object) -> None:
        if self._file is not None:
            self._file.write((self._separator if self._separator[0] == "{" else "") + "]}")
            self._file.close()

    def _write(self, feature: str) -> None:
        assert self._file is not None
        self._file.write(self._separator + feature)
        self._separator = ",\n"


def _read_part(file: BinaryIO, place: int, length: int) -> bytes:
    file.seek(place)
    return file.read(length)
