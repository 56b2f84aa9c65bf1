"""Polygons to pixels: a pixel belongs to a polygon if its center lies inside.

The first pixel is the square from (0, 0) to (1, 1), its center (0.5, 0.5). So an outline that follows the edges of
pixels, as microseg writes them, gives back exactly these pixels. A center on an edge belongs to one of the two sides,
the same one for all polygons, so polygons that share an edge share no pixel and leave none out.
"""

import itertools

import numpy as np
import numpy.typing as npt
import shapely

__all__ = ["draw_polygons", "pixel_runs"]

_EDGES = 2**20  # crossings of edges and rows that are sorted at once
_PIXELS = 2**22  # pixels that are written at once

Box = tuple[float, float, float, float]
Geometries = npt.NDArray[np.object_]


def draw_polygons(
    target: npt.NDArray[np.generic], polygons: Geometries, values: npt.NDArray[np.generic], box: Box | None = None
) -> None:
    """Write the value of each polygon to its pixels; later polygons cover earlier ones.

    Args:
        target: Contiguous array that is written to; it may have a coarser grid than the polygons' coordinates.
        polygons: Valid polygons and multipolygons.
        values: Value of each polygon.
        box: Left, upper, right and lower edge of ``target``, in the polygons' coordinates; by default, its size.

    Shape:
        target (h, w), polygons (N,), values (N,)
    """
    flat = target.reshape(-1)
    weights = shapely.get_num_coordinates(polygons)
    for part in _chunks(weights * 4, _EDGES):
        starts, stops, owners = pixel_runs(polygons[part], target.shape, box)
        lengths = stops - starts
        for some in _chunks(lengths, _PIXELS):
            count = lengths[some]
            offsets = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count)
            flat[np.repeat(starts[some], count) + offsets] = np.repeat(values[part][owners[some]], count)


def pixel_runs(
    polygons: Geometries, shape: tuple[int, ...], box: Box | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Runs of pixels inside polygons.

    Args:
        polygons: Valid polygons and multipolygons.
        shape: Height and width of the pixel grid.
        box: See `draw_polygons`.

    Shape:
        polygons (N,), results (R,)

    Returns:
        First pixel and end of each run, counted row by row, and the index of its polygon, in ascending order.
    """
    height, width = shape
    left, top, right, bottom = box or (0.0, 0.0, float(width), float(height))
    parts, part_owner = shapely.get_parts(polygons, return_index=True)
    rings, ring_part = shapely.get_rings(parts, return_index=True)
    points, point_ring = shapely.get_coordinates(rings, return_index=True)
    points = (points - (left, top)) * (width / (right - left), height / (bottom - top))
    inner = point_ring[1:] == point_ring[:-1]
    upper, lower = points[:-1][inner], points[1:][inner]  # ends of the edges
    owner = part_owner[ring_part[point_ring[:-1][inner]]]
    swap = upper[:, 1] > lower[:, 1]  # an edge is calculated in the same way in both directions
    upper[swap], lower[swap] = lower[swap], upper[swap]
    # an edge crosses the centers of the rows y with upper <= y + 0.5 < lower
    first, end = (np.ceil(edge[:, 1] - 0.5).clip(0, height).astype(np.int64) for edge in (upper, lower))
    count = end - first
    edge = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(edge)) - np.repeat(count.cumsum() - count, count) + first[edge]
    (x0, y0), (x1, y1) = upper[edge].T, lower[edge].T
    x = x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0)
    column = np.ceil(x - 0.5).clip(0, width).astype(np.int64)
    crossings = np.sort((owner[edge] * height + row) * (width + 1) + column)
    lines, columns = np.divmod(crossings, width + 1)
    owners, rows = np.divmod(lines, height)
    starts, stops = (rows * width + columns)[::2], (rows * width + columns)[1::2]
    filled = stops > starts
    return starts[filled], stops[filled], owners[::2][filled]


def _chunks(sizes: npt.NDArray[np.integer], limit: int) -> list[slice]:
    """Consecutive parts whose sizes sum up to about a limit."""
    if not len(sizes):
        return []
    number = (np.cumsum(sizes, dtype=np.int64) - sizes) // limit
    cuts = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(sizes)]
    return [slice(start, stop) for start, stop in itertools.pairwise(cuts)]
