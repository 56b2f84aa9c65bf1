"""Distance between the boundaries of two masks of one class.

The boundary of a mask is made of its pixels that have a 4-neighbor outside it; the image's edge counts as outside.
Ignored pixels count as neither, so an outline that only separates a mask from ignored pixels is no boundary.
"""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from microseg.errors import DataError

__all__ = ["assd", "boundary_dice", "hausdorff_95"]

Mask = npt.NDArray[np.bool_]
Distances = npt.NDArray[np.float64]


def boundary_dice(prediction: Mask, reference: Mask, tolerance: float = 2.0, ignored: Mask | None = None) -> float:
    """Share of both boundaries that lies within a tolerance of the other one.

    Args:
        prediction: Pixels of the class.
        reference: Pixels of the class.
        tolerance: Distance in pixels that is still right.
        ignored: Pixels that do not count.

    Shape:
        (H, W) each

    Returns:
        0..1; nan if neither mask has a boundary, 0 if only one has.

    Raises:
        DataError: The sizes differ, or the tolerance is negative.

    Reference:
        Nikolov et al., "Clinically applicable segmentation of head and neck anatomy", JMIR 2021 (surface Dice).
    """
    if not tolerance >= 0:
        raise DataError(f"expected a tolerance of 0 px or more, got {tolerance}")
    both = np.concatenate(_distances(prediction, reference, ignored))
    return float((both <= tolerance).mean()) if both.size else float("nan")


def hausdorff_95(prediction: Mask, reference: Mask, mpp: float | None = None, ignored: Mask | None = None) -> float:
    """95th percentile of the distance from one boundary to the other; the larger of the two directions.

    Args:
        prediction: Pixels of the class.
        reference: Pixels of the class.
        mpp: Microns per pixel; None gives pixels.
        ignored: Pixels that do not count.

    Shape:
        (H, W) each

    Returns:
        Microns, or pixels; nan if neither mask has a boundary, inf if only one has.

    Raises:
        DataError: The sizes differ.
    """
    there, back = _distances(prediction, reference, ignored)
    if there.size and back.size:
        return float(max(np.percentile(there, 95), np.percentile(back, 95))) * (mpp or 1.0)
    return _one_or_none(there, back)


def assd(prediction: Mask, reference: Mask, mpp: float | None = None, ignored: Mask | None = None) -> float:
    """Average symmetric surface distance: the mean over the pixels of both boundaries.

    Args:
        prediction: Pixels of the class.
        reference: Pixels of the class.
        mpp: Microns per pixel; None gives pixels.
        ignored: Pixels that do not count.

    Shape:
        (H, W) each

    Returns:
        Microns, or pixels; nan if neither mask has a boundary, inf if only one has.

    Raises:
        DataError: The sizes differ.
    """
    there, back = _distances(prediction, reference, ignored)
    if there.size and back.size:
        return float(np.concatenate((there, back)).mean()) * (mpp or 1.0)
    return _one_or_none(there, back)


def _distances(prediction: Mask, reference: Mask, ignored: Mask | None) -> tuple[Distances, Distances]:
    """Pixels from each boundary pixel to the other boundary: prediction → reference, reference → prediction."""
    if ignored is None:
        ignored = np.zeros(reference.shape, dtype=np.bool_)
    if not prediction.shape == reference.shape == ignored.shape:
        raise DataError(
            f"expected masks of one size, got {prediction.shape}, {reference.shape}, ignored {ignored.shape}"
        )
    ours, theirs = _boundary(prediction, ignored), _boundary(reference, ignored)
    return _distance_to(theirs)[ours], _distance_to(ours)[theirs]


def _boundary(mask: Mask, ignored: Mask) -> Mask:
    inside: Mask = ndimage.binary_erosion(mask | ignored)
    return mask & ~ignored & ~inside


def _distance_to(boundary: Mask) -> Distances:
    if not boundary.any():
        return np.full(boundary.shape, np.inf)
    distances: Distances = ndimage.distance_transform_edt(~boundary)
    return distances


def _one_or_none(there: Distances, back: Distances) -> float:
    return float("inf") if there.size or back.size else float("nan")
