"""Objects of a piece of a mask: of some rows, with those around them that labels and measurements depend on.

What a piece holds depends on its pixels alone, so several can be looked at at the same time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import shapely

from microseg.models.separation import Separation, grow_labels, separate_regions
from microseg.outputs.growing_objects import FoundParts
from microseg.outputs.object_numbers import pack_labels
from microseg.outputs.object_sums import SUMS, Weights, sum_objects
from microseg.outputs.pixel_amounts import PixelAmounts
from microseg.outputs.polygons import outline_regions
from microseg.outputs.runs import Runs, find_runs, label_runs

__all__ = ["FoundPiece", "Piece", "PieceOptions", "Rows", "find_piece"]

Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Rows:
    """Some rows of the image, with what is known of their pixels; see `MaskStrip`."""

    mask: Bytes
    confidence: Weights
    interior: Bytes | None = None
    instances: npt.NDArray[np.int32] | None = None
    image: Bytes | None = None

    def __len__(self) -> int:
        return len(self.mask)

    def __getitem__(self, rows: slice) -> "Rows":
        return Rows(*(None if array is None else array[rows] for array in self._arrays()))  # type: ignore[arg-type]

    def copy(self) -> "Rows":
        """The same rows in memory of their own."""
        return Rows(*(None if array is None else array.copy() for array in self._arrays()))  # type: ignore[arg-type]

    @staticmethod
    def join(parts: Sequence["Rows"]) -> "Rows":
        """Rows that follow each other."""
        arrays = zip(*(part._arrays() for part in parts), strict=True)
        return Rows(*(None if group[0] is None else np.concatenate(group) for group in arrays))  # type: ignore[arg-type]

    def _arrays(self) -> tuple[npt.NDArray[np.generic] | None, ...]:
        return self.mask, self.confidence, self.interior, self.instances, self.image


@dataclass(frozen=True)
class PieceOptions:
    """What is looked for in a piece; the attributes are arguments of `ObjectFinder`."""

    outlines: bool
    separation: Separation
    amounts: PixelAmounts | None
    numbers: bool


@dataclass(frozen=True)
class Piece:
    """Rows that are looked at.

    Attributes:
        around: The rows of the piece with those around them.
        rows: The rows of the piece among these.
        top: Number of its first row in the image.
        last: Whether no row follows it.
    """

    around: Rows
    rows: slice
    top: int
    last: bool


@dataclass(frozen=True)
class FoundPiece:
    """What was found in a piece.

    Attributes:
        parts: The parts of objects that lie in it, by their numbers in it.
        begins: Number of the object at each pixel of its first row, or whose ring is there.
        ends: The same of the first row below it; 0 after the last row.
        labels: Number of the object at each pixel, from `pack_labels`; empty where they are not asked for.
        whole: Whether it is the whole mask, and nothing has to be joined or numbered.

    Shape:
        begins and ends (W,)
    """

    parts: FoundParts
    begins: Labels
    ends: Labels
    labels: bytes
    whole: bool


def find_piece(piece: Piece, options: PieceOptions) -> FoundPiece:
    """Find, outline and measure the parts of objects that lie in a piece."""
    around, rows, amounts = piece.around, piece.rows, options.amounts
    labels, runs = _label(around, options.separation)  # parts of one object may have several numbers
    count = int(labels.max(initial=0))
    reached = labels
    if amounts is not None:
        reached = labels.copy()
        grow_labels(reached, np.ones(labels.shape, np.uint8), amounts.ring)
    known = runs if rows == slice(0, len(around)) else None
    parts = _find(piece, options, labels, reached, count, known)
    ends = np.zeros(labels.shape[1], np.int32) if piece.last else reached[rows.stop].copy()
    packed = pack_labels(labels[rows]) if options.numbers else b""
    whole = piece.last and rows.start == 0 and not options.numbers and parts.one_outline_each()
    if not whole and parts.polygons is not None:
        parts = replace(parts, wkb=shapely.to_wkb(parts.polygons))
    return FoundPiece(parts, reached[rows.start].copy(), ends, packed, whole)


def _label(rows: Rows, separation: Separation) -> tuple[npt.NDArray[np.int32], Runs | None]:
    """The number of the object at each pixel; and the runs of these where objects are connected regions."""
    if rows.instances is not None:
        return rows.instances, None
    if rows.interior is not None or separation.by_shape:
        return separate_regions(rows.mask, rows.interior, separation), None
    runs = find_runs(rows.mask)
    runs = replace(runs, labels=label_runs(runs))
    return runs.paint(runs.labels), runs


def _find(
    piece: Piece, options: PieceOptions, labels: Labels, reached: Labels, count: int, known: Runs | None
) -> FoundParts:
    """The part of each object that lies in the piece itself, whose runs may be known."""
    around, rows, amounts = piece.around, piece.rows, options.amounts
    inner = labels[rows]
    runs = find_runs(inner) if known is None else known
    if options.outlines:
        top = piece.top - rows.start
        sums = sum_objects(labels, count, around.confidence, rows=rows, top=top, runs=runs)
    else:  # only the area is needed
        sums = np.zeros((count, len(SUMS)))
        sums[:, 0] = np.bincount(runs.labels, runs.lengths, minlength=count + 1)[1:]
    if amounts is not None:
        assert around.image is not None, "needed to measure amounts"
        measured = amounts.sum_objects(inner, reached[rows], count, around.image[rows])
        sums = np.concatenate([sums, measured], axis=1)
    firsts = np.full(count + 1, np.iinfo(np.int64).max)
    firsts[runs.labels[::-1]] = runs.starts[::-1] + piece.top * labels.shape[1]  # the last assignment wins: the first
    indices = np.zeros(count + 1, np.uint8)
    if len(inner) < len(labels):
        outside = find_runs(labels)
        indices[outside.labels] = around.mask.ravel()[outside.starts]
    indices[runs.labels] = around.mask[rows].ravel()[runs.starts]
    if not options.outlines:
        return FoundParts(indices[1:], firsts[1:], sums)
    connected = known is not None  # then objects are regions, and none reaches out of the piece
    owners, polygons = outline_regions(inner, piece.top, connected=connected, runs=runs)
    return FoundParts(indices[1:], firsts[1:], sums, owners, polygons)
