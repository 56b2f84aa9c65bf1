"""Masks to objects, and objects to outlines that QuPath opens (GeoJSON).

An object is a region of one class whose pixels share edges (4 neighbours). Regions that only touch at a corner are two
objects: as one, their outline would cross itself, which is not valid geometry.
"""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from rasterio.features import shapes
from skimage.measure import label

from microseg.data import IGNORE
from microseg.inference.palette import class_colour

__all__ = ["feature_collection", "label_objects", "outline_objects"]


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
    for geometry, number in shapes(labels, mask=labels > 0, connectivity=4):
        rings = [ring[::-1] for ring in geometry["coordinates"]]  # outer rings anticlockwise, as RFC 7946 asks
        polygons[int(number) - 1] = shapely.Polygon(rings[0], rings[1:])
    return polygons


def feature_collection(
    polygons: npt.NDArray[np.object_],
    indices: Sequence[int],
    classes: Sequence[str],
    *,
    measurements: Sequence[Mapping[str, float]] | None = None,
    source: str = "",
) -> dict[str, Any]:
    """GeoJSON of objects: each an annotation of QuPath's, with its class, colour and measurements.

    Args:
        polygons: N, from `outline_objects`.
        indices: N, the class index of each object.
        classes: names of the classes.
        measurements: N, the figures of each object by name; those that are not finite are left out.
        source: what the objects were found in. Objects of the same source have the same ids each time.

    Returns:
        A FeatureCollection, ready for JSON, in full-resolution pixels from the top left.

    Reference:
        RFC 7946, and QuPath's ``QuPathTypeAdapters``: ids are UUIDs, measurements are one object of numbers.
    """
    namespace = uuid.uuid5(uuid.NAMESPACE_URL, source)
    figures = measurements if measurements is not None else [{}] * len(polygons)
    features = [
        {
            "type": "Feature",
            "id": str(uuid.uuid5(namespace, str(number))),
            "geometry": {"type": "Polygon", "coordinates": _coordinates(polygon)},
            "properties": {
                "objectType": "annotation",
                "name": f"{classes[index]} {number}",
                "classification": {"name": classes[index], "color": list(class_colour(index))},
                "measurements": {name: float(value) for name, value in figure.items() if np.isfinite(value)},
            },
        }
        for number, (polygon, index, figure) in enumerate(zip(polygons, indices, figures, strict=True), start=1)
    ]
    return {"type": "FeatureCollection", "features": features}


def _coordinates(polygon: shapely.Polygon) -> list[list[list[int]]]:
    rings = [polygon.exterior, *polygon.interiors]
    return [shapely.get_coordinates(ring).astype(int).tolist() for ring in rings]
