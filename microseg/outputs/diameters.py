"""Largest and smallest diameters of objects."""

import numpy as np
import numpy.typing as npt
import shapely

__all__ = ["feret_diameters"]


def feret_diameters(hulls: npt.NDArray[np.object_]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Largest and smallest Feret diameter: the distances of two parallel lines that enclose an object.

    Args:
        hulls: Convex hulls, as shapely polygons.

    Shape:
        (N,) → (N,), (N,)

    Reference:
        As QuPath's maximum and minimum diameter. The smallest diameter of a convex polygon is perpendicular to one of
        its sides: Toussaint, "Solving geometric problems with the rotating calipers", 1983.
    """
    largest, smallest = np.zeros(len(hulls)), np.zeros(len(hulls))
    points, owners = shapely.get_coordinates(hulls, return_index=True)
    counts = np.bincount(owners, minlength=len(hulls))
    starts = counts.cumsum() - counts
    corners_of = counts - 1  # the last point of a ring repeats the first
    # hulls of similar size are measured together, filled up by their last corner
    sizes = 2 ** np.ceil(np.log2(np.maximum(corners_of, 4))).astype(np.int64)
    for size in np.unique(sizes[counts > 0]).tolist():
        chosen = np.flatnonzero((sizes == size) & (counts > 0))
        step = max(1, 2**20 // size**2)  # objects at once, so that memory is bounded
        for part in range(0, len(chosen), step):
            some = chosen[part : part + step]
            places = np.minimum(np.arange(size), corners_of[some, None] - 1)
            corners = points[starts[some][:, None] + places] - points[starts[some]][:, None]  # (n, V, 2)
            sides = np.roll(corners, -1, axis=1) - corners  # (n, V, 2)
            lengths = np.hypot(sides[..., 0], sides[..., 1])  # (n, V)
            normals = np.stack([-sides[..., 1], sides[..., 0]], axis=-1) / np.where(lengths > 0, lengths, 1)[..., None]
            along = normals @ corners.transpose(0, 2, 1)  # (n, V sides, V corners)
            widths = along.max(axis=2) - along.min(axis=2)
            smallest[some] = np.where(lengths > 0, widths, np.inf).min(axis=1)
            squares = np.einsum("nvi,nvi->nv", corners, corners)
            distances = squares[:, :, None] + squares[:, None] - 2 * (corners @ corners.transpose(0, 2, 1))
            largest[some] = np.sqrt(np.maximum(distances.max(axis=(1, 2)), 0))
    return largest, smallest
