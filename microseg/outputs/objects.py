"""Objects of a mask, found strip by strip: an object that reaches over several strips is joined.

An object is a region of one class whose pixels share edges (4 neighbors). Regions that only touch at a corner are two
objects: as one, their outline would cross itself, which is not valid geometry. Where the network predicts instances,
touching objects are separated, see `separate_objects`.

Finished objects go to a temporary file; in memory are the objects that are not finished. The outline of one that grows
too large is cut into parts, which go to the file, too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import shapely

from microseg.models.separation import Separation, grow_labels, label_objects, separate_regions
from microseg.outputs.growing_objects import FoundParts, GrowingObject, convex_hull_of
from microseg.outputs.measurements import tabulate
from microseg.outputs.object_file import ObjectFile, Places
from microseg.outputs.object_numbers import ObjectNumbers
from microseg.outputs.object_sums import SUMS, Weights, sum_objects
from microseg.outputs.polygons import outline_regions, union_polygons
from microseg.outputs.record import ImageInfo
from microseg.outputs.runs import Runs, find_runs, label_runs
from microseg.outputs.stains import Stains
from microseg.outputs.writers import MaskStrip, ObjectBatch

__all__ = ["PIECE", "ObjectFinder", "label_objects"]

_CONTEXT = 2  # rows above and below a piece, which its perimeters depend on
_PARTS = 16  # outlines of parts of an object that are joined at once
_LARGEST_OUTLINE = 2**16  # points of the outline of an object of a slide, above which it is cut into parts

PIECE = 2**20
"""Pixels of a piece of a strip of a slide."""

Rows = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Rows:
    """Some rows of the image, with what is known of their pixels; see `MaskStrip`."""

    mask: Rows
    confidence: Weights
    interior: Rows | None = None
    instances: npt.NDArray[np.int32] | None = None
    image: Rows | None = None

    def __len__(self) -> int:
        return len(self.mask)

    def __getitem__(self, rows: slice) -> "_Rows":
        return _Rows(*(None if array is None else array[rows] for array in self._arrays()))  # type: ignore[arg-type]

    def copy(self) -> "_Rows":
        return _Rows(*(None if array is None else array.copy() for array in self._arrays()))  # type: ignore[arg-type]

    @staticmethod
    def join(parts: Sequence["_Rows"]) -> "_Rows":
        arrays = zip(*(part._arrays() for part in parts), strict=True)
        return _Rows(*(None if group[0] is None else np.concatenate(group) for group in arrays))  # type: ignore[arg-type]

    def _arrays(self) -> tuple[npt.NDArray[np.generic] | None, ...]:
        return self.mask, self.confidence, self.interior, self.instances, self.image


class ObjectFinder:
    """Finds, outlines and measures the objects of a mask that is given strip by strip, from top to bottom.

    Labels are numbered in the order of the objects' first pixels, row by row, from 1. Outlines follow the edges of
    pixels, with holes; coordinates are pixels from the top left corner: the first pixel is the square from (0, 0) to
    (1, 1). Use it in a ``with`` block.

    Args:
        width: Width of the mask.
        folder: Folder of the temporary files; None for the system's.
        outlines: Whether outlines are needed; without them objects can only be counted.
        piece: Pixels of a strip that are processed at once; None for whole strips, whose outlines are never cut.
        separation: How touching objects are separated, in strips with their interior.
        stains: Stains to measure, in strips with their image; None for none.
        numbers: Whether the numbers of all pixels are needed; see `labels`.

    Attributes:
        indices: Class index of each object, (N,), after `finish`.

    Deviation:
        The perimeter of an object that a piece border cuts through may differ from that in the whole mask where two
        parts of it touch at a corner, and are connected only outside of the piece and the two rows around it.
    """

    def __init__(
        self,
        width: int,
        folder: Path | None = None,
        *,
        outlines: bool = True,
        piece: int | None = PIECE,
        separation: Separation | None = None,
        stains: Stains | None = None,
        numbers: bool = False,
    ) -> None:
        self._width, self._outlines, self._piece, self._stains = width, outlines, piece, stains
        self._separation = separation or Separation()
        self._context = _CONTEXT
        if self._separation.classes:
            self._context = max(self._context, self._separation.context)
        if stains is not None:
            self._context += stains.ring
        self._columns = len(SUMS) if stains is None else len(SUMS) + stains.columns
        self._file = ObjectFile(folder, self._columns)
        self._numbers = ObjectNumbers(folder) if numbers else None
        self._top = 0  # first row of the waiting piece
        self._above: _Rows | None = None  # context
        self._waiting: _Rows | None = None  # until the rows below are known
        self._open: dict[int, GrowingObject] = {}  # unfinished objects, by each number that `_last` may hold for them
        self._last = np.zeros(width, np.int64)  # numbers of the objects in the first row below the previous piece
        self._next = 1
        self._unit = 1.0  # of the confidences
        self.indices = np.zeros(0, np.int64)

    def add(self, strip: MaskStrip) -> None:
        """Add the next strip."""
        mask, confidence = strip.mask, strip.confidence
        if confidence is None:
            confidence = np.full(mask.shape, np.nan, np.float32)
        self._unit = 255.0 if confidence.dtype == np.uint8 else 1.0
        image = strip.image if self._stains is not None else None
        interior = strip.interior if self._separation.classes and not self._separation.by_shape else None
        whole = _Rows(mask, confidence, interior, strip.instances, image)
        least = self._context if self._context == _CONTEXT else 2 * self._context
        rows = len(mask) if self._piece is None else max(least, self._piece // self._width)
        for start in range(0, len(mask), rows):
            self._add(whole[start : start + rows])
        if self._waiting is not None and rows < len(mask):  # a view, which would keep the whole strip in memory
            self._waiting = self._waiting.copy()

    def finish(self) -> None:
        """Complete the last objects, after the last strip."""
        if self._waiting is not None:
            self._process(self._waiting, None)
            self._waiting = self._above = None
        self._file.finish()
        self.indices = self._file.indices.astype(np.int64)

    def batches(self, image: ImageInfo) -> Iterator[ObjectBatch]:
        """All objects after `finish`, some at a time; at least one batch, which may be empty."""
        names = () if self._stains is None else self._stains.names
        for some in self._file.read():
            sums = some.sums
            sums[:, SUMS.index("confidence")] /= self._unit
            rows = slice(some.first, some.first + len(sums))
            columns = tabulate(sums, some.hulls, self.indices[rows], image, names)
            columns["label"] += some.first
            yield ObjectBatch(columns, some.polygons, self.indices[some.owners], some.owners + 1, some.parts)

    def labels(self) -> Iterator[npt.NDArray[np.int32]]:
        """Number of the object at each pixel after `finish`, some rows at a time; 0 where there is none."""
        assert self._numbers is not None, "asked for in the constructor"
        return self._numbers.read(self._file.order)

    def close(self) -> None:
        """Remove the temporary files."""
        self._file.close()
        if self._numbers is not None:
            self._numbers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _add(self, rows: _Rows) -> None:
        if self._waiting is None:
            self._waiting = rows
        elif len(rows) < self._context:  # too few rows to be the context of the waiting piece
            self._waiting = _Rows.join([self._waiting, rows])
        else:
            self._process(self._waiting, rows[: self._context])
            self._waiting = rows

    def _process(self, piece: _Rows, below: _Rows | None) -> None:
        around = _Rows.join([part for part in (self._above, piece, below) if part is not None])
        start = 0 if self._above is None else len(self._above)
        rows = slice(start, start + len(piece))
        labels, runs = self._label(around)  # numbers in this piece; parts of one object may have several
        count = int(labels.max(initial=0))
        reached = labels
        if self._stains is not None:
            reached = labels.copy()
            grow_labels(reached, np.ones(labels.shape, np.uint8), self._stains.ring)
        known = runs if len(piece) == len(around) else None
        parts = self._find(labels, reached, around, count, rows, known)
        if self._above is None and below is None and self._numbers is None and parts.one_outline_each():
            self._write_whole(parts)  # the whole mask is one piece
            return
        found = parts.objects()
        numbers = np.arange(self._next, self._next + count)
        self._next += count
        if self._numbers is not None:
            self._numbers.add(labels[rows], int(numbers[0]) if count else 1)
            for number, one in zip(numbers.tolist(), found, strict=True):
                one.number = number
        ends = reached[rows.stop] if below is not None else np.zeros(self._width, np.int32)
        self._join(found, numbers, reached[rows.start], ends)
        self._last = np.where(ends > 0, numbers[ends - 1] if count else 0, 0)
        self._above = around[max(0, rows.stop - self._context) : rows.stop].copy()
        self._top += len(piece)

    def _label(self, rows: _Rows) -> tuple[npt.NDArray[np.int32], Runs | None]:
        """The number of the object at each pixel; and the runs of these where objects are connected regions."""
        if rows.instances is not None:
            return rows.instances, None
        if rows.interior is not None or self._separation.by_shape:
            return separate_regions(rows.mask, rows.interior, self._separation), None
        runs = find_runs(rows.mask)
        runs = replace(runs, labels=label_runs(runs))
        return runs.paint(runs.labels), runs

    def _find(
        self,
        labels: npt.NDArray[np.int32],
        reached: npt.NDArray[np.int32],
        around: _Rows,
        count: int,
        rows: slice,
        known: Runs | None,
    ) -> FoundParts:
        """The part of each object that lies in the piece itself, whose runs may be known."""
        inner = labels[rows]
        runs = find_runs(inner) if known is None else known
        if self._outlines:
            top = self._top - rows.start
            sums = sum_objects(labels, count, around.confidence, rows=rows, top=top, runs=runs)
        else:  # only the area is needed
            sums = np.zeros((count, len(SUMS)))
            sums[:, 0] = np.bincount(runs.labels, runs.lengths, minlength=count + 1)[1:]
        if self._stains is not None:
            assert around.image is not None, "needed to measure stains"
            measured = self._stains.sum_objects(inner, reached[rows], count, around.image[rows])
            sums = np.concatenate([sums, measured], axis=1)
        firsts = np.full(count + 1, np.iinfo(np.int64).max)
        firsts[runs.labels[::-1]] = runs.starts[::-1] + self._top * self._width  # the last assignment wins: the first
        indices = np.zeros(count + 1, np.uint8)
        if len(inner) < len(labels):
            outside = find_runs(labels)
            indices[outside.labels] = around.mask.ravel()[outside.starts]
        indices[runs.labels] = around.mask[rows].ravel()[runs.starts]
        if not self._outlines:
            return FoundParts(indices[1:], firsts[1:], sums)
        connected = known is not None  # then objects are regions, and none reaches out of the piece
        owners, polygons = outline_regions(inner, self._top, connected=connected, runs=runs)
        return FoundParts(indices[1:], firsts[1:], sums, owners, polygons)

    def _join(
        self,
        found: list[GrowingObject],
        numbers: npt.NDArray[np.int64],
        begins: npt.NDArray[np.int32],
        ends: npt.NDArray[np.int32],
    ) -> None:
        """Join the open objects with those found, and write those that do not continue below."""
        before = {id(one): one for one in self._open.values()}
        pairs = np.stack([self._last, begins.astype(np.int64)])
        for old, new in np.unique(pairs[:, (pairs > 0).all(axis=0)], axis=1).T.tolist():
            one, other = self._open[old].whole, found[new - 1].whole
            if one is other:
                continue
            larger, smaller = (one, other) if one.size >= other.size else (other, one)
            larger.merge(smaller)
            if self._numbers is not None:
                self._numbers.join(smaller.number, larger.number)
        owner = {int(number): found[number - 1].whole for number in np.unique(ends[ends > 0])}
        alive = {id(one): one for one in owner.values()}
        everything = {id(one): one for one in (*before.values(), *found) if one.into is None}
        self._write([one for key, one in everything.items() if key not in alive and one.sums[0] > 0])
        self._open = {int(numbers[number - 1]): one for number, one in owner.items()}
        if self._piece is not None:
            for one in alive.values():
                if one.points > _LARGEST_OUTLINE:
                    self._write_parts(one)
                elif len(one.parts) > 2 * one.joined + _PARTS:
                    one.join_parts()

    def _write_parts(self, one: GrowingObject) -> None:
        """Move the outlines of the parts of an object to the file."""
        (parts,) = union_polygons([one.parts])
        one.hull = convex_hull_of([one.hull, *parts])
        one.written.append(self._file.write_outlines(parts))
        one.parts, one.points, one.joined = [], 0, 0

    def _write_whole(self, found: FoundParts) -> None:
        """Write all objects of a mask that was one piece."""
        smallest, classes = self._separation.smallest_area, self._separation.classes
        kept = (found.sums[:, 0] > 0) & ((found.sums[:, 0] >= smallest) | ~np.isin(found.indices, classes))
        polygons = None if found.polygons is None else found.polygons[kept]
        self._file.write_all(found.indices[kept], found.firsts[kept], found.sums[kept], polygons)

    def _write(self, finished: Sequence[GrowingObject]) -> None:
        smallest, classes = self._separation.smallest_area, self._separation.classes
        finished = [one for one in finished if one.sums[0] >= smallest or one.index not in classes]
        if not finished:
            return
        outlines = None
        further: dict[int, tuple[list[Places], shapely.Geometry]] = {}
        if self._outlines:
            outlines = np.empty(len(finished), np.object_)
            joined = union_polygons([one.parts for one in finished])
            for number, (one, parts) in enumerate(zip(finished, joined, strict=True)):
                # only the ring around an object may have reached the last pieces, after all its outlines were written
                outlines[number], *others = parts or self._take_outline(one)
                if others or one.written:
                    hull = convex_hull_of([one.hull, outlines[number], *others])
                    further[number] = ([*one.written, self._file.write_outlines(others)], hull)
        written = self._file.write_objects(
            np.array([one.index for one in finished], np.uint8),
            np.array([one.first for one in finished], np.int64),
            np.stack([one.sums for one in finished]),
            outlines,
        )
        for number, (places, hull) in further.items():
            self._file.add_outlines(int(written[number]), places, hull)
        if self._numbers is not None:
            for number, one in zip(written.tolist(), finished, strict=True):
                self._numbers.finish(one.number, number)

    def _take_outline(self, one: GrowingObject) -> list[shapely.Polygon]:
        """One of the outlines of an object that are in the file, which is left out there."""
        last = one.written[-1]
        one.written[-1] = last[:-1]
        return [self._file.read_outline(last[-1])]
