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
    for count in np.unique(counts[counts > 0]).tolist():
        chosen = np.flatnonzero(counts == count)
        step = max(1, 2**20 // count**2)  # objects at once, so that memory is bounded
        for part in range(0, len(chosen), step):
            some = chosen[part : part + step]
            corners = points[starts[some][:, None] + np.arange(count - 1)]  # (n, V, 2); the last repeats the first
            sides = np.roll(corners, -1, axis=1) - corners  # (n, V, 2)
            normals = np.stack([-sides[..., 1], sides[..., 0]], axis=-1)
            normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
            along = normals @ corners.transpose(0, 2, 1)  # (n, V sides, V corners)
            smallest[some] = np.ptp(along, axis=2).min(axis=1)
            distances = np.linalg.norm(corners[:, :, None] - corners[:, None], axis=-1)  # (n, V, V)
            largest[some] = distances.max(axis=(1, 2))
    return largest, smallest
