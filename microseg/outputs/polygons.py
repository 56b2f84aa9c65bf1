"""Polygons of regions of pixels."""

import itertools
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import shapely
from rasterio import Affine
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import shapes

__all__ = ["outline_regions", "union_polygons"]

warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # rasterio catches them, but not in several threads

Polygons = npt.NDArray[np.object_]


def outline_regions(labels: npt.NDArray[np.int32], top: int) -> tuple[npt.NDArray[np.int64], Polygons]:
    """Outline each connected region of labels; regions of one label that only touch at a corner are two.

    Args:
        labels: Label of each pixel; 0 is not outlined.
        top: Number of the first row.

    Shape:
        (h, w) → (N,), (N,)

    Returns:
        Label and polygon of each region. Polygons follow the edges of pixels, with holes.
    """
    down = Affine.translation(0, top)
    numbers: list[int] = []
    rings: list[list[tuple[float, float]]] = []
    owners: list[int] = []  # index of the polygon of each ring
    for geometry, number in shapes(labels, mask=labels > 0, connectivity=4, transform=down):
        rings += geometry["coordinates"]
        owners += [len(numbers)] * len(geometry["coordinates"])
        numbers.append(int(number))
    if not numbers:
        return np.zeros(0, np.int64), np.zeros(0, np.object_)
    points = np.array(list(itertools.chain.from_iterable(rings)))  # (N, 2)
    lines = shapely.linearrings(points, indices=np.repeat(np.arange(len(rings)), [len(ring) for ring in rings]))
    # outer rings anticlockwise, as RFC 7946 requires
    return np.array(numbers, np.int64), shapely.reverse(shapely.polygons(lines, indices=owners))


def union_polygons(parts: Sequence[shapely.Polygon]) -> list[shapely.Polygon]:
    """Join polygons that share edges, without the points on the shared edges; one for each connected region."""
    if len(parts) == 1:
        return list(parts)
    joined = []
    for whole in shapely.get_parts(shapely.union_all(parts)).tolist():
        rings = [_without_straight_points(shapely.get_coordinates(ring)) for ring in (whole.exterior, *whole.interiors)]
        joined.append(shapely.orient_polygons(shapely.Polygon(rings[0], rings[1:])))
    return joined


def _without_straight_points(ring: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A closed ring (N, 2) without the points at which it does not turn."""
    points = ring[:-1]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    kept = points[turns]
    return np.concatenate([kept, kept[:1]])
