"""Objects of a mask that are not finished: the parts that were found in a piece, and what they are joined to."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import shapely

from microseg.outputs.object_file import Places
from microseg.outputs.object_sums import ObjectSums
from microseg.outputs.polygons import union_polygons

__all__ = ["FoundParts", "GrowingObject", "convex_hull_of"]


@dataclass
class GrowingObject:
    """An object, or the part of it found so far.

    Attributes:
        index: Class index.
        first: Position of its first pixel, counted row by row.
        sums: Sums over its pixels.
        parts: Polygons of its parts.
        points: Number of points of these.
        joined: Number of its parts when they were joined last.
        number: One of the preliminary numbers of its pixels, which stands for all of them; 0 if they are not needed.
        written: Outlines of it in the file.
        hull: Convex hull of these.
        into: The object that it turned out to be a part of.
    """

    index: int
    first: int
    sums: ObjectSums
    parts: list[shapely.Polygon] = field(default_factory=list)
    points: int = 0
    joined: int = 0
    number: int = 0
    written: list[Places] = field(default_factory=list)
    hull: shapely.Geometry | None = None
    into: "GrowingObject | None" = None

    @property
    def whole(self) -> "GrowingObject":
        """The object that it is a part of."""
        one = self
        while one.into is not None:
            one = one.into
        return one

    @property
    def size(self) -> tuple[int, int]:
        """Number of its outlines in the file and in memory."""
        return len(self.written), len(self.parts)

    def merge(self, other: "GrowingObject") -> None:
        """Add another part of the same object, which has no more outlines than it."""
        self.index = self.index or other.index
        self.first = min(self.first, other.first)
        self.sums += other.sums
        self.parts += other.parts
        self.points += other.points
        self.joined += other.joined
        self.written += other.written
        self.hull = convex_hull_of([self.hull, other.hull])
        other.into = self

    def join_parts(self) -> None:
        """Join its parts in memory; of a part for each piece that it reaches over, a few remain."""
        (self.parts,) = union_polygons([self.parts])
        self.points = int(shapely.get_num_coordinates(self.parts).sum())
        self.joined = len(self.parts)


@dataclass(frozen=True)
class FoundParts:
    """The parts of N objects that lie in a piece, by the numbers of their pixels from 1; see `GrowingObject`.

    ``wkb`` are the outlines as `ObjectFile` takes them.
    """

    indices: npt.NDArray[np.uint8]
    firsts: npt.NDArray[np.int64]
    sums: ObjectSums
    owners: npt.NDArray[np.int64] | None = None
    polygons: npt.NDArray[np.object_] | None = None
    wkb: npt.NDArray[np.object_] | None = None

    def one_outline_each(self) -> bool:
        """Whether each has one outline, or none was asked for."""
        return self.owners is None or np.array_equal(self.owners, np.arange(1, len(self.sums) + 1))

    def outlines(self) -> npt.NDArray[np.int64]:
        """Number of outlines of each; one where none was asked for."""
        count = len(self.sums)
        return np.ones(count, np.int64) if self.owners is None else np.bincount(self.owners, minlength=count + 1)[1:]

    def select(self, chosen: npt.NDArray[np.bool_]) -> "FoundParts":
        """Some of the parts that have one outline each, by whether each is chosen; their numbers are those before."""
        if self.owners is None or self.polygons is None:
            return FoundParts(self.indices[chosen], self.firsts[chosen], self.sums[chosen])
        of = np.flatnonzero(chosen[self.owners - 1])
        of = of[self.owners[of].argsort(kind="stable")]
        rows = self.indices[chosen], self.firsts[chosen], self.sums[chosen]
        return FoundParts(*rows, self.owners[of], self.polygons[of], None if self.wkb is None else self.wkb[of])

    def objects(self, chosen: npt.NDArray[np.bool_]) -> dict[int, GrowingObject]:
        """The chosen parts, each by itself, by their numbers."""
        columns = self.indices[chosen].tolist(), self.firsts[chosen].tolist(), self.sums[chosen]
        numbers = (np.flatnonzero(chosen) + 1).tolist()
        objects = {number: GrowingObject(*row) for number, *row in zip(numbers, *columns, strict=True)}
        if self.owners is not None and self.polygons is not None:
            of = chosen[self.owners - 1]
            polygons = self.polygons[of]
            points = shapely.get_num_coordinates(polygons).tolist()
            for number, polygon, size in zip(self.owners[of].tolist(), polygons.tolist(), points, strict=True):
                objects[number].parts.append(polygon)
                objects[number].points += size
        return objects


def convex_hull_of(geometries: Sequence[shapely.Geometry | None]) -> shapely.Geometry | None:
    """Convex hull of geometries; None if there are none."""
    known = [geometry for geometry in geometries if geometry is not None and not geometry.is_empty]
    return shapely.convex_hull(shapely.GeometryCollection(known)) if known else None
