"""Outlines of objects as a file states them: names and valid polygons."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from microseg.errors import ImageReadError

__all__ = ["OutlineBuilder", "Outlines", "ellipse", "mask_polygons", "single_ring"]

Ring = Sequence[Sequence[float]] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class Outlines:
    """Outlined objects of one image, in the order of the file.

    Attributes:
        names: Name of each object's class, as the file states it.
        polygons: Polygon or multipolygon of each object, in pixels of the image's finest level from its top left
            corner; the first pixel is the square from (0, 0) to (1, 1).
        skipped: Counts of what else the file has, and of what was repaired, by description.

    Shape:
        polygons (N,)
    """

    names: tuple[str, ...]
    polygons: npt.NDArray[np.object_]
    skipped: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def scaled(self, factor: float) -> "Outlines":
        """The same outlines with coordinates multiplied by a factor, which is noted."""
        if factor == 1:
            return self
        polygons = shapely.transform(self.polygons, lambda points: points * factor)
        note = f"of another level or unit, coordinates multiplied by {factor:g}"
        return Outlines(self.names, polygons, {**self.skipped, note: len(self.names)})


class OutlineBuilder:
    """Collects the outlines of a file, and makes valid polygons of them.

    Outlines that intersect themselves are repaired: what a ring winds around is inside. Outlines of fewer than three
    points, and those without area, are counted and not used.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._rings: list[npt.NDArray[np.float64]] = []
        self._ring_polygon: list[int] = []  # polygon of each ring; its first one is the outer one
        self._polygon_object: list[int] = []
        self.skipped = Counter[str]()

    def add(self, name: str, polygons: Sequence[Sequence[Ring]]) -> None:
        """Add an object.

        Args:
            name: Name of its class.
            polygons: Its parts, each as the outer ring and the holes; rings may be closed or not.

        Raises:
            ImageReadError: A ring is not a list of finite numbers, two for each point.
        """
        used = False
        for rings in polygons:
            arrays = [_closed(ring) for ring in rings]
            if not arrays or len(arrays[0]) < 4:
                self.skipped["outlines of fewer than three points, not used"] += 1
                continue
            used = True
            arrays = [ring for ring in arrays if len(ring) >= 4]
            self._rings += arrays
            self._ring_polygon += [len(self._polygon_object)] * len(arrays)
            self._polygon_object.append(len(self._names))
        if used:
            self._names.append(name)

    def build(self) -> Outlines:
        """Make valid polygons of all objects."""
        if not self._names:
            return Outlines((), np.zeros(0, np.object_), dict(self.skipped))
        points = np.concatenate(self._rings)
        lengths = [len(ring) for ring in self._rings]
        rings = shapely.linearrings(points, indices=np.repeat(np.arange(len(lengths)), lengths))
        parts = shapely.polygons(rings, indices=self._ring_polygon)
        owners = np.array(self._polygon_object)
        single = np.bincount(owners, minlength=len(self._names)) == 1
        polygons = np.empty(len(self._names), np.object_)
        polygons[owners[single[owners]]] = parts[single[owners]]
        several = ~single[owners]
        if several.any():
            parts[several] = self._valid(parts[several])
            firsts = np.flatnonzero(np.diff(owners, prepend=-1))  # the parts of an object follow each other
            for number, group in zip(owners[firsts].tolist(), np.split(parts, firsts[1:]), strict=True):
                if len(group) > 1:
                    polygons[number] = shapely.union_all(group)
        polygons = self._valid(polygons)
        solid = shapely.area(polygons) > 0
        if flat := int((~solid).sum()):
            self.skipped["outlines without area, not used"] += flat
        names = tuple(name for name, kept in zip(self._names, solid.tolist(), strict=True) if kept)
        return Outlines(names, polygons[solid], dict(self.skipped))

    def _valid(self, polygons: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
        invalid = ~shapely.is_valid(polygons)
        if invalid.any():
            for polygon in polygons[invalid]:
                _check_crossings(polygon)
            repaired = shapely.make_valid(polygons[invalid], method="structure", keep_collapsed=False)
            polygons = polygons.copy()
            polygons[invalid] = repaired
            self.skipped["outlines that intersect themselves, repaired"] += int(invalid.sum())
        return polygons


def _check_crossings(polygon: shapely.Polygon) -> None:
    """Refuse an outline whose edges cross so often that it has no inside; a repair could take hours.

    Raises:
        ImageReadError: There are more than ten crossings for each edge.
    """
    points = shapely.get_coordinates(polygon)
    limit = 10 * len(points) + 1000  # each crossing is found from both edges
    edges = shapely.linestrings(np.stack([points[:-1], points[1:]], axis=1))
    tree, count = shapely.STRtree(edges), 0
    for start in range(0, len(edges), 16):
        count += tree.query(edges[start : start + 16], predicate="crosses").shape[1]
        if count > limit:
            raise ImageReadError(
                f"expected outlines of objects, got one of {len(points)} points whose edges cross each other over "
                f"{count // 2} times. Draw it again, or remove it."
            )


def _closed(ring: Any) -> npt.NDArray[np.float64]:
    """A closed ring (N, 2)."""
    try:
        points = np.asarray(ring, np.float64)
    except (TypeError, ValueError) as error:
        raise ImageReadError(f"expected coordinates as pairs of numbers, got {str(ring)[:80]}: {error}") from None
    if not len(points):
        return np.zeros((0, 2))
    if points.ndim != 2 or points.shape[1] < 2 or not np.isfinite(points[:, :2]).all():
        raise ImageReadError(f"expected coordinates as pairs of finite numbers, got {str(ring)[:80]}")
    points = points[:, :2]
    return points if (points[0] == points[-1]).all() else np.concatenate([points, points[:1]])


def ellipse(left: float, top: float, right: float, bottom: float, points: int = 128) -> npt.NDArray[np.float64]:
    """Points of the ellipse that fills a rectangle; its area is that of the ellipse.

    Shape:
        (points, 2)
    """
    angle = np.arange(points) * 2 * np.pi / points
    grow = np.sqrt(2 * np.pi / points / np.sin(2 * np.pi / points))  # a polygon inside of it would be smaller
    x = (left + right) / 2 + grow * (right - left) / 2 * np.cos(angle)
    y = (top + bottom) / 2 + grow * (bottom - top) / 2 * np.sin(angle)
    return np.stack([x, y], axis=1)


def mask_polygons(mask: npt.NDArray[Any], left: float, top: float) -> list[list[npt.NDArray[np.float64]]]:
    """Rings of the parts of a mask, along the edges of its pixels.

    Args:
        mask: Pixels of the object are not 0.
        left: Left edge of the mask.
        top: Upper edge of the mask.

    Shape:
        mask (h, w)

    Returns:
        The parts, each as the outer ring and the holes; parts that touch at a corner are two.
    """
    values = np.ascontiguousarray(mask != 0, np.uint8)
    found = _shapes()(values, mask=values > 0, connectivity=4)
    return [[np.asarray(ring, np.float64) + np.array([left, top]) for ring in it["coordinates"]] for it, _ in found]


@cache
def _shapes() -> Any:
    """The function `rasterio.features.shapes`; it is imported when first needed."""
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.features import shapes

    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # it catches them, but not in several threads
    return shapes


def single_ring(polygon: shapely.Polygon | shapely.MultiPolygon) -> npt.NDArray[np.float64]:
    """One closed ring around all parts and holes, joined by lines there and back; `OutlineBuilder` undoes it.

    For formats that have neither holes nor objects of several parts.

    Shape:
        (N, 2)
    """
    rings = [
        shapely.get_coordinates(ring)
        for part in shapely.get_parts(shapely.orient_polygons(polygon))
        for ring in (part.exterior, *part.interiors)
    ]
    start = rings[0][:1]
    return np.concatenate([rings[0], *(np.concatenate([ring, start]) for ring in rings[1:])])
