"""Objects of a mask, found strip by strip: an object that reaches over several strips is joined.

An object is a region of one class whose pixels share edges (4 neighbors). Regions that only touch at a corner are two
objects: as one, their outline would cross itself, which is not valid geometry.

Finished outlines go to a temporary file; in memory are the sums of each object and the objects that are not finished.
"""

import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Self

import numpy as np
import numpy.typing as npt
import shapely
from rasterio import Affine
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import shapes
from skimage.measure import label

from microseg.annotations.index_masks import IGNORE
from microseg.outputs.measurements import SUMS, ObjectSums, Weights, sum_objects, tabulate
from microseg.outputs.record import ImageInfo
from microseg.outputs.writers import MaskStrip, ObjectBatch

__all__ = ["ObjectFinder", "label_objects"]

warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # rasterio catches them, but not in several threads

_CONTEXT = 2  # rows above and below a piece, which its perimeters depend on
_PIECE = 2**18  # pixels of a piece of a strip of a slide
_BATCH = 4096  # objects read back at once
_IN_MEMORY = 2**24  # bytes of outlines before they are moved to a temporary file

Rows = npt.NDArray[np.uint8]


def label_objects(mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """Number the objects of a mask from 1, in the order of their first pixels, row by row.

    Args:
        mask: Class indices; 0 (background) and 255 (ignored) are not objects.

    Shape:
        (H, W) → (H, W)

    Returns:
        Number of the object at each pixel; 0 where there is none.
    """
    objects = np.where(mask == IGNORE, 0, mask)
    return np.asarray(label(objects, background=0, connectivity=1), np.int32)  # type: ignore[no-untyped-call]


@dataclass
class _Object:
    """An object, or the part of it found so far.

    Attributes:
        index: Class index.
        first: Position of its first pixel, counted row by row.
        sums: Sums over its pixels.
        parts: Polygons of its parts.
    """

    index: int
    first: int
    sums: ObjectSums
    parts: list[shapely.Polygon] = field(default_factory=list)

    def merge(self, other: "_Object") -> None:
        """Add another part of the same object."""
        self.first = min(self.first, other.first)
        self.sums += other.sums
        self.parts += other.parts


class ObjectFinder:
    """Finds, outlines and measures the objects of a mask that is given strip by strip, from top to bottom.

    Labels are numbered in the order of the objects' first pixels, row by row, from 1. Outlines follow the edges of
    pixels, with holes; coordinates are pixels from the top left corner: the first pixel is the square from (0, 0) to
    (1, 1). Use it in a ``with`` block.

    Args:
        width: Width of the mask.
        folder: Folder of the temporary file; None for the system's.
        outlines: Whether outlines are needed; without them objects can only be counted.
        piece: Pixels of a strip that are processed at once; None for whole strips.

    Attributes:
        indices: Class index of each object, (N,), after `finish`.

    Deviation:
        The perimeter of an object that a piece border cuts through may differ from that in the whole mask where two
        parts of it touch at a corner, and are connected only outside of the piece and the two rows around it.
    """

    def __init__(
        self, width: int, folder: Path | None = None, *, outlines: bool = True, piece: int | None = _PIECE
    ) -> None:
        self._width, self._outlines, self._piece = width, outlines, piece
        self._file = SpooledTemporaryFile(_IN_MEMORY, dir=None if folder is None else str(folder))  # noqa: SIM115 (closed by `close`)
        self._top = 0  # first row of the waiting piece
        self._above: tuple[Rows, Weights] | None = None  # context
        self._waiting: tuple[Rows, Weights] | None = None  # until the rows below are known
        self._open: dict[int, _Object] = {}  # unfinished objects, by each number that `_last` may hold for them
        self._last = np.zeros(width, np.int64)  # numbers of the objects in the first row below the previous piece
        self._next = 1
        self._rows: list[npt.NDArray[np.float64]] = []  # finished: class, first pixel, length of the outline, sums
        self._unit = 1.0  # of the confidences
        self.indices = np.zeros(0, np.int64)
        self._sums, self._places = np.zeros((0, len(SUMS))), np.zeros((0, 2), np.int64)

    def add(self, strip: MaskStrip) -> None:
        """Add the next strip."""
        mask, confidence = strip.mask, strip.confidence
        if confidence is None:
            confidence = np.full(mask.shape, np.nan, np.float32)
        self._unit = 255.0 if confidence.dtype == np.uint8 else 1.0
        rows = len(mask) if self._piece is None else max(_CONTEXT, self._piece // self._width)
        for start in range(0, len(mask), rows):
            self._add(mask[start : start + rows], confidence[start : start + rows])
        if self._waiting is not None and rows < len(mask):  # a view, which would keep the whole strip in memory
            self._waiting = self._waiting[0].copy(), self._waiting[1].copy()

    def finish(self) -> None:
        """Complete the last objects, after the last strip."""
        if self._waiting is not None:
            self._process(self._waiting, None)
            self._waiting = self._above = None
        rows = np.concatenate(self._rows) if self._rows else np.zeros((0, 3 + len(SUMS)))
        lengths = rows[:, 2].astype(np.int64)
        places = np.stack([lengths.cumsum() - lengths, lengths], axis=1)
        rows[:, 3 + SUMS.index("confidence")] /= self._unit
        order = rows[:, 1].argsort(kind="stable")
        self.indices, self._sums, self._places = rows[order, 0].astype(np.int64), rows[order, 3:], places[order]

    def batches(self, image: ImageInfo) -> Iterator[ObjectBatch]:
        """All objects after `finish`, some at a time; at least one batch, which may be empty."""
        for start in range(0, max(1, len(self.indices)), _BATCH):
            some = slice(start, start + _BATCH)
            polygons = shapely.from_wkb(
                np.array([self._outline(*it) for it in self._places[some].tolist()], np.object_)
            )
            table = tabulate(self._sums[some], polygons, self.indices[some], image)
            table["label"] += start
            yield ObjectBatch(table, polygons, self.indices[some])

    def close(self) -> None:
        """Remove the temporary file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _outline(self, place: int, length: int) -> bytes:
        self._file.seek(place)
        return self._file.read(length)

    def _add(self, mask: Rows, confidence: Weights) -> None:
        if self._waiting is None:
            self._waiting = mask, confidence
        elif len(mask) < _CONTEXT:  # too few rows to be the context of the waiting piece
            self._waiting = np.concatenate([self._waiting[0], mask]), np.concatenate([self._waiting[1], confidence])
        else:
            self._process(self._waiting, (mask[:_CONTEXT], confidence[:_CONTEXT]))
            self._waiting = mask, confidence

    def _process(self, piece: tuple[Rows, Weights], below: tuple[Rows, Weights] | None) -> None:
        around = [part for part in (self._above, piece, below) if part is not None]
        mask, confidence = (np.concatenate([part[which] for part in around]) for which in (0, 1))
        start = 0 if self._above is None else len(self._above[0])
        rows = slice(start, start + len(piece[0]))
        labels = label_objects(mask)  # numbers in this piece; parts of one object may have several
        count = int(labels.max(initial=0))
        found = self._find(labels, mask, confidence, count, rows)
        numbers = np.arange(self._next, self._next + count)
        self._next += count
        ends = labels[rows.stop] if below is not None else np.zeros(self._width, np.int32)
        self._join(found, numbers, labels[rows.start], ends)
        self._last = np.where(ends > 0, numbers[ends - 1] if count else 0, 0)
        context = slice(max(0, rows.stop - _CONTEXT), rows.stop)
        self._above = mask[context].copy(), confidence[context].copy()
        self._top += len(piece[0])

    def _find(
        self, labels: npt.NDArray[np.int32], mask: Rows, confidence: Weights, count: int, rows: slice
    ) -> list[_Object]:
        """The part of each object that lies in the piece itself."""
        sums = sum_objects(labels, count, confidence, rows=rows, top=self._top - rows.start)
        inner = labels[rows]
        pixels = np.flatnonzero(inner)[::-1]
        firsts = np.full(count + 1, np.iinfo(np.int64).max)
        firsts[inner.ravel()[pixels]] = pixels + self._top * self._width  # the last assignment wins: the first pixel
        indices = np.zeros(count + 1, np.uint8)
        indices[labels.ravel()] = mask.ravel()
        objects = [
            _Object(int(index), int(first), row)
            for index, first, row in zip(indices[1:], firsts[1:], sums, strict=True)
        ]
        if self._outlines:
            for number, polygon in _outline_regions(inner, self._top):
                objects[number - 1].parts.append(polygon)
        return objects

    def _join(
        self,
        found: list[_Object],
        numbers: npt.NDArray[np.int64],
        begins: npt.NDArray[np.int32],
        ends: npt.NDArray[np.int32],
    ) -> None:
        """Join the open objects with those found, and write those that do not continue below."""
        owner: list[_Object] = list(found)
        members: dict[int, list[int]] = {id(one): [number] for number, one in enumerate(found)}
        pairs = np.stack([self._last, begins.astype(np.int64)])
        before = {id(one): one for one in self._open.values()}
        for old, new in np.unique(pairs[:, (pairs > 0).all(axis=0)], axis=1).T.tolist():
            older, newer = self._open[old], owner[new - 1]
            if older is newer:
                continue
            older.merge(newer)
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

    def _write(self, finished: Sequence[_Object]) -> None:
        if not finished:
            return
        outlines = [b""] * len(finished)
        if self._outlines:
            outlines = shapely.to_wkb(np.array([_union(one.parts) for one in finished], np.object_)).tolist()
        self._file.writelines(outlines)
        values = [(one.index, one.first, len(outline)) for one, outline in zip(finished, outlines, strict=True)]
        self._rows.append(np.column_stack([np.array(values, np.float64), np.stack([one.sums for one in finished])]))


def _outline_regions(labels: npt.NDArray[np.int32], top: int) -> Iterator[tuple[int, shapely.Polygon]]:
    """Label and polygon of each connected region of labels, (h, w), whose first row is ``top``."""
    down = Affine.translation(0, top)
    numbers: list[int] = []
    rings: list[list[tuple[float, float]]] = []
    owners: list[int] = []  # index of the polygon of each ring
    for geometry, number in shapes(labels, mask=labels > 0, connectivity=4, transform=down):
        rings += geometry["coordinates"]
        owners += [len(numbers)] * len(geometry["coordinates"])
        numbers.append(int(number))
    if not numbers:
        return
    points = np.array(list(itertools.chain.from_iterable(rings)))  # (N, 2)
    lines = shapely.linearrings(points, indices=np.repeat(np.arange(len(rings)), [len(ring) for ring in rings]))
    # outer rings anticlockwise, as RFC 7946 requires
    yield from zip(numbers, shapely.reverse(shapely.polygons(lines, indices=owners)), strict=True)


def _union(parts: Sequence[shapely.Polygon]) -> shapely.Polygon:
    """One polygon of parts that share edges, without the points on the shared edges."""
    if len(parts) == 1:
        return parts[0]
    whole = shapely.union_all(parts)
    assert isinstance(whole, shapely.Polygon), "the parts of an object share edges"
    rings = [_without_straight_points(shapely.get_coordinates(ring)) for ring in (whole.exterior, *whole.interiors)]
    return shapely.orient_polygons(shapely.Polygon(rings[0], rings[1:]))


def _without_straight_points(ring: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A closed ring (N, 2) without the points at which it does not turn."""
    points = ring[:-1]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    kept = points[turns]
    return np.concatenate([kept, kept[:1]])
