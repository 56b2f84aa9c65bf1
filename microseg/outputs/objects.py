"""Objects of a mask, found strip by strip: an object that reaches over several strips is joined.

An object is a region of one class whose pixels share edges (4 neighbors). Regions that only touch at a corner are two
objects: as one, their outline would cross itself, which is not valid geometry. Where the network predicts instances,
touching objects are separated, see `separate_objects`.

Finished objects go to a temporary file; in memory are the objects that are not finished. The outline of one that grows
too large is cut into parts, which go to the file, too.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import shapely

from microseg.models.separation import Separation, label_objects
from microseg.outputs.growing_objects import FoundParts, GrowingObject, convex_hull_of
from microseg.outputs.measurements import tabulate
from microseg.outputs.object_file import FinishedObjects, ObjectFile, Places
from microseg.outputs.object_numbers import ObjectNumbers
from microseg.outputs.object_sums import SUMS
from microseg.outputs.pieces import FoundPiece, Piece, PieceOptions, Rows, find_piece
from microseg.outputs.pixel_amounts import PixelAmounts
from microseg.outputs.polygons import union_polygons
from microseg.outputs.record import ImageInfo
from microseg.outputs.writers import MaskStrip, ObjectBatch
from microseg.threads import Threads

__all__ = ["PIECE", "ObjectFinder", "label_objects"]

_CONTEXT = 2  # rows above and below a piece, which its perimeters depend on
_PARTS = 16  # outlines of parts of an object that are joined at once
_LARGEST_OUTLINE = 2**16  # points of the outline of an object of a slide, above which it is cut into parts

PIECE = 2**20
"""Pixels of a piece of a strip of a slide."""


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
        amounts: Stains or intensities to measure, in strips with their image; None for none.
        numbers: Whether the numbers of all pixels are needed; see `labels`.
        threads: Threads that look at several pieces at once.

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
        amounts: PixelAmounts | None = None,
        numbers: bool = False,
        threads: Threads | None = None,
    ) -> None:
        self._width, self._outlines, self._piece, self._amounts = width, outlines, piece, amounts
        self._separation = separation or Separation()
        self._options = PieceOptions(outlines, self._separation, amounts, numbers)
        self._threads = threads or Threads()
        self._finding: deque[Future[FoundPiece]] = deque()
        self._joining: deque[tuple[list[GrowingObject], Future[list[list[shapely.Polygon]]]]] = deque()
        self._context = _CONTEXT
        if self._separation.classes:
            self._context = max(self._context, self._separation.context)
        if amounts is not None:
            self._context += amounts.ring
        self._columns = len(SUMS) if amounts is None else len(SUMS) + amounts.sums
        self._file = ObjectFile(folder, self._columns)
        self._numbers = ObjectNumbers(width, folder) if numbers else None
        self._top = 0  # first row of the waiting piece
        self._above: Rows | None = None  # context
        self._waiting: Rows | None = None  # until the rows below are known
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
        image = strip.image if self._amounts is not None else None
        interior = strip.interior if self._separation.classes and not self._separation.by_shape else None
        whole = Rows(mask, confidence, interior, strip.instances, image)
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
        self._join_found(0)
        self._write_joined(0)
        self._file.finish()
        self.indices = self._file.indices.astype(np.int64)

    def batches(self, image: ImageInfo) -> Iterator[ObjectBatch]:
        """All objects after `finish`, some at a time; at least one batch, which may be empty."""

        def measure(some: FinishedObjects) -> ObjectBatch:
            sums, hulls = some.sums, some.hulls()
            sums[:, SUMS.index("confidence")] /= self._unit
            rows = slice(some.first, some.first + len(sums))
            columns = tabulate(sums, hulls, self.indices[rows], image, self._amounts)
            columns["label"] += some.first
            return ObjectBatch(columns, some.polygons, self.indices[some.owners], some.owners + 1, some.parts)

        return self._threads.map(measure, self._file.read())

    def labels(self) -> Iterator[npt.NDArray[np.int32]]:
        """Number of the object at each pixel after `finish`, some rows at a time; 0 where there is none."""
        assert self._numbers is not None, "asked for in the constructor"
        return self._numbers.read(self._file.order, self._threads)

    def close(self) -> None:
        """Remove the temporary files."""
        self._file.close()
        if self._numbers is not None:
            self._numbers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _add(self, rows: Rows) -> None:
        if self._waiting is None:
            self._waiting = rows
        elif len(rows) < self._context:  # too few rows to be the context of the waiting piece
            self._waiting = Rows.join([self._waiting, rows])
        else:
            self._process(self._waiting, rows[: self._context])
            self._waiting = rows

    def _process(self, rows: Rows, below: Rows | None) -> None:
        """Look at the next piece, in another thread where there are such."""
        around = Rows.join([part for part in (self._above, rows, below) if part is not None])
        start = 0 if self._above is None else len(self._above)
        inner = slice(start, start + len(rows))
        piece = Piece(around, inner, self._top, below is None)
        self._above = around[max(0, inner.stop - self._context) : inner.stop].copy()
        self._top += len(rows)
        self._finding.append(self._threads.start(find_piece, piece, self._options))
        self._join_found(self._threads.ahead)

    def _join_found(self, most: int) -> None:
        """Join the objects of pieces, until that many are left."""
        while len(self._finding) > most:
            self._join(self._finding.popleft().result())

    def _join(self, piece: FoundPiece) -> None:
        """Join the open objects with those found, and write those that do not continue below."""
        parts, begins, ends = piece.parts, piece.begins, piece.ends
        kept = self._is_kept(parts.indices, parts.sums[:, 0])
        if piece.whole:
            some = parts.select(kept)
            self._file.write_all(some.indices, some.firsts, some.sums, some.polygons)
            return
        numbers = np.arange(self._next, self._next + len(parts.sums))
        self._next += len(numbers)
        if self._numbers is not None:
            self._numbers.add(piece.labels, int(numbers[0]) if len(numbers) else 1)
        cut = np.zeros(len(numbers) + 1, np.bool_)
        cut[begins] = cut[ends] = True
        complete = ~cut[1:] & (parts.sums[:, 0] > 0) & (parts.outlines() == 1)
        self._write_complete(parts, complete & kept, numbers)
        found = parts.objects(~complete & (cut[1:] | (parts.sums[:, 0] > 0)))
        if self._numbers is not None:
            for number, one in found.items():
                one.number = int(numbers[number - 1])
        before = {id(one): one for one in self._open.values()}
        touching = np.flatnonzero((self._last > 0) & (begins > 0))
        pairs = np.unique(self._last[touching] * len(cut) + begins[touching])  # by the old number, then the new one
        for old, new in zip(*(each.tolist() for each in np.divmod(pairs, len(cut))), strict=True):
            one, other = self._open[old].whole, found[new].whole
            if one is other:
                continue
            larger, smaller = (one, other) if one.size >= other.size else (other, one)
            larger.merge(smaller)
            if self._numbers is not None:
                self._numbers.join(smaller.number, larger.number)
        owner = {int(number): found[number].whole for number in np.unique(ends[ends > 0]).tolist()}
        alive = {id(one): one for one in owner.values()}
        everything = {id(one): one for one in (*before.values(), *found.values()) if one.into is None}
        self._write([one for key, one in everything.items() if key not in alive])
        self._open = {int(numbers[number - 1]): one for number, one in owner.items()}
        self._last = np.where(ends > 0, numbers[ends - 1] if len(numbers) else 0, 0)
        if self._piece is not None:
            for one in alive.values():
                if one.points > _LARGEST_OUTLINE:
                    self._write_parts(one)
                elif len(one.parts) > 2 * one.joined + _PARTS:
                    one.join_parts()

    def _is_kept(self, indices: npt.NDArray[np.uint8], areas: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Whether objects have pixels, and not fewer than those of their class must have."""
        large: npt.NDArray[np.bool_] = areas >= self._separation.smallest_area
        return (areas > 0) & (large | ~np.isin(indices, self._separation.classes))

    def _write_complete(self, parts: FoundParts, chosen: npt.NDArray[np.bool_], numbers: npt.NDArray[np.int64]) -> None:
        """Write the chosen objects, which lie in one piece."""
        some = parts.select(chosen)
        written = self._file.write_objects(some.indices, some.firsts, some.sums, some.wkb)
        if self._numbers is not None:
            self._numbers.finish(numbers[chosen], written)

    def _write_parts(self, one: GrowingObject) -> None:
        """Move the outlines of the parts of an object to the file."""
        (parts,) = union_polygons([one.parts])
        one.hull = convex_hull_of([one.hull, *parts])
        one.written.append(self._file.write_outlines(parts))
        one.parts, one.points, one.joined = [], 0, 0

    def _write(self, finished: Sequence[GrowingObject]) -> None:
        """Write finished objects, whose outlines are joined before, in another thread where there are such."""
        if not finished:
            return
        indices, areas = (np.array(it) for it in zip(*((one.index, one.sums[0]) for one in finished), strict=True))
        kept = self._is_kept(indices, areas)
        finished = [one for one, keep in zip(finished, kept.tolist(), strict=True) if keep]
        self._joining.append((finished, self._threads.start(union_polygons, [one.parts for one in finished])))
        self._write_joined(self._threads.ahead)

    def _write_joined(self, most: int) -> None:
        """Write objects whose outlines are joined, until that many groups of objects are left."""
        while len(self._joining) > most:
            finished, joined = self._joining.popleft()
            self._write_outlined(finished, joined.result())

    def _write_outlined(self, finished: Sequence[GrowingObject], joined: Sequence[Sequence[shapely.Polygon]]) -> None:
        outlines = None
        further: dict[int, tuple[list[Places], shapely.Geometry]] = {}
        if not finished:
            return
        if self._outlines:
            outlines = np.empty(len(finished), np.object_)
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
            None if outlines is None else shapely.to_wkb(outlines),
        )
        for number, (places, hull) in further.items():
            self._file.add_outlines(int(written[number]), places, hull)
        if self._numbers is not None:
            self._numbers.finish(np.array([one.number for one in finished], np.int64), written)

    def _take_outline(self, one: GrowingObject) -> list[shapely.Polygon]:
        """One of the outlines of an object that are in the file, which is left out there."""
        last = one.written[-1]
        one.written[-1] = last[:-1]
        return [self._file.read_outline(last[-1])]
