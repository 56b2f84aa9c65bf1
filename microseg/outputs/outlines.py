"""Masks to objects, and objects to outlines that QuPath opens (GeoJSON).

An object is a region of one class whose pixels share edges (4 neighbors). Regions that only touch at a corner are two
objects: as one, their outline would cross itself, which is not valid geometry.
"""

import functools
import itertools
import json
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from rasterio import Affine
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import shapes
from skimage.measure import label

from microseg.annotations.index_masks import IGNORE
from microseg.outputs.palette import class_color

__all__ = [
    "Annotations",
    "feature_collection",
    "join_parts",
    "label_objects",
    "outline_objects",
    "outline_parts",
]

warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # rasterio catches them, but not in several threads


def label_objects(mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """Number the objects of a mask from 1, in the order in which they are met row by row.

    Args:
        mask: class indices; 0 (background) and 255 (ignored) are no objects.

    Shape:
        (H, W) → (H, W)

    Returns:
        The number of the object at each pixel; 0 where there is none.
    """
    objects = np.where(mask == IGNORE, 0, mask)
    return np.asarray(label(objects, background=0, connectivity=1), np.int32)  # type: ignore[no-untyped-call]


def outline_objects(labels: npt.NDArray[np.int32]) -> npt.NDArray[np.object_]:
    """Polygons around objects, along the pixels' edges, with holes.

    Args:
        labels: from `label_objects`, N objects.

    Shape:
        (H, W) → (N,)

    Returns:
        One valid shapely polygon an object, in the order of their numbers. Coordinates are pixels from the image's top
        left corner: the first pixel is the square from (0, 0) to (1, 1).
    """
    polygons = np.empty(int(labels.max(initial=0)), np.object_)
    for number, polygon in outline_parts(labels):
        polygons[number - 1] = polygon
    return polygons


def outline_parts(labels: npt.NDArray[np.int32], top: int = 0) -> Iterator[tuple[int, shapely.Polygon]]:
    """Polygons around the regions of labels that share edges; an object of several regions has several.

    Args:
        labels: (h, W), some rows of an image.
        top: number of the first of them.

    Yields:
        The number of the object, and a polygon in pixels of the image.
    """
    down = Affine.translation(0, top)
    numbers: list[int] = []
    rings: list[list[tuple[float, float]]] = []
    owners: list[int] = []  # of each ring: which polygon
    for geometry, number in shapes(labels, mask=labels > 0, connectivity=4, transform=down):
        rings += geometry["coordinates"]
        owners += [len(numbers)] * len(geometry["coordinates"])
        numbers.append(int(number))
    if not numbers:
        return
    points = np.array(list(itertools.chain.from_iterable(rings)))  # (N, 2)
    lines = shapely.linearrings(points, indices=np.repeat(np.arange(len(rings)), [len(ring) for ring in rings]))
    # outer rings anticlockwise, as RFC 7946 asks
    yield from zip(numbers, shapely.reverse(shapely.polygons(lines, indices=owners)), strict=True)


def join_parts(parts: Sequence[shapely.Polygon]) -> shapely.Polygon:
    """One polygon of parts that share edges, without the points on the edges that they shared."""
    if len(parts) == 1:
        return parts[0]
    whole = shapely.union_all(parts)
    assert isinstance(whole, shapely.Polygon), "the parts of an object share edges"
    rings = [_without_straight_points(shapely.get_coordinates(ring)) for ring in (whole.exterior, *whole.interiors)]
    return shapely.orient_polygons(shapely.Polygon(rings[0], rings[1:]))


def feature_collection(
    polygons: npt.NDArray[np.object_],
    indices: Sequence[int],
    classes: Sequence[str],
    *,
    measurements: Sequence[Mapping[str, float]] | None = None,
    source: str = "",
    step: tuple[float, float] = (1.0, 1.0),
) -> dict[str, Any]:
    """GeoJSON of objects: each an annotation of QuPath's, with its class, color and measurements.

    Args:
        polygons: N, from `outline_objects`.
        indices: N, the class index of each object.
        classes: names of the classes.
        measurements: N, the figures of each object by name; those that are not finite are left out.
        source: what the objects were found in. Objects of the same source have the same ids each time.
        step: pixels of the image along one of the outlines', across and down.

    Returns:
        A FeatureCollection, ready for JSON, in full-resolution pixels from the top left.

    Reference:
        RFC 7946, and QuPath's ``QuPathTypeAdapters``: ids are UUIDs, measurements are one object of numbers.
    """
    annotations = Annotations(classes, source, step)
    figures = measurements if measurements is not None else [{}] * len(polygons)
    features = [
        annotations.feature(polygon, number, index, figure)
        for number, (polygon, index, figure) in enumerate(zip(polygons, indices, figures, strict=True), start=1)
    ]
    return {"type": "FeatureCollection", "features": features}


@dataclass(frozen=True)
class Annotations:
    """Makes GeoJSON of an image's objects, one at a time; see `feature_collection`.

    Attributes:
        classes: names of the classes.
        source: what the objects were found in.
        step: pixels of the image along one of the outlines', across and down.
    """

    classes: Sequence[str]
    source: str = ""
    step: tuple[float, float] = (1.0, 1.0)

    def feature(
        self, polygon: shapely.Polygon, number: int, index: int, figures: Mapping[str, float]
    ) -> dict[str, Any]:
        """One object.

        Args:
            polygon: its outline.
            number: of the object.
            index: of its class.
            figures: its measurements.
        """
        geometry = {"type": "Polygon", "coordinates": _coordinates(polygon, self.step)}
        return self._without_geometry(number, index, figures) | {"geometry": geometry}

    def text(self, polygon: shapely.Polygon, number: int, index: int, figures: Mapping[str, float]) -> str:
        """The JSON text of `feature`, made without a Python number for each coordinate: outlines may be long."""
        if self.step != (1.0, 1.0):
            polygon = shapely.transform(polygon, lambda coordinates: (coordinates * self.step).round(2))
        geometry = f'"geometry": {shapely.to_geojson(polygon)}'
        feature = json.dumps(self._without_geometry(number, index, figures), allow_nan=False)
        return feature.replace('"geometry": null', geometry, 1)

    def _without_geometry(self, number: int, index: int, figures: Mapping[str, float]) -> dict[str, Any]:
        return {
            "type": "Feature",
            "id": str(uuid.uuid5(_namespace(self.source), str(number))),
            "geometry": None,
            "properties": {
                "objectType": "annotation",
                "name": f"{self.classes[index]} {number}",
                "classification": {"name": self.classes[index], "color": list(class_color(index))},
                "measurements": {name: float(value) for name, value in figures.items() if np.isfinite(value)},
            },
        }


@functools.lru_cache(maxsize=8)
def _namespace(source: str) -> uuid.UUID:
    return uuid.uuid5(uuid.NAMESPACE_URL, source)


def _coordinates(polygon: shapely.Polygon, step: tuple[float, float]) -> list[list[list[float]]]:
    rings = [shapely.get_coordinates(ring) for ring in (polygon.exterior, *polygon.interiors)]
    if step == (1.0, 1.0):
        return [ring.astype(int).tolist() for ring in rings]
    return [(ring * step).round(2).tolist() for ring in rings]


def _without_straight_points(ring: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A closed ring (N, 2) without the points at which it does not turn."""
    points = ring[:-1]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    kept = points[turns]
    return np.concatenate([kept, kept[:1]])
