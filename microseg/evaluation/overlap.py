"""Overlap of two masks, and of their boundaries."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from microseg.annotations.index_masks import IGNORE
from microseg.errors import DataError

__all__ = ["boundary_dice", "confusion_matrix", "dice"]

Mask = npt.NDArray[np.uint8]
BinaryMask = npt.NDArray[np.bool_]


def confusion_matrix(prediction: Mask, reference: Mask, classes: int) -> npt.NDArray[np.int64]:
    """Count the pixels of every pair of classes; matrices of several images may be added.

    Args:
        prediction: Class index of each pixel.
        reference: Class index of each pixel; 255 = ignored.
        classes: Number of classes.

    Shape:
        (H, W) each → (classes, classes), rows are the reference's classes

    Raises:
        DataError: The sizes differ, or an index is not a class.
    """
    if prediction.shape != reference.shape:
        raise DataError(f"Expected masks of one size, got {prediction.shape} and {reference.shape}: resize one.")
    counted = reference != IGNORE
    predicted, referred = _indices(prediction[counted], classes), _indices(reference[counted], classes)
    pairs = np.bincount(referred * classes + predicted, minlength=classes * classes)
    return pairs.reshape(classes, classes).astype(np.int64)


def dice(prediction: Mask, reference: Mask, classes: int) -> npt.NDArray[np.float64]:
    """Return the Dice of each class, 2·TP / (2·TP + FP + FN); see `confusion_matrix` for the arguments.

    Returns:
        0..1, (K,); NaN for a class that neither mask has.
    """
    matrix = confusion_matrix(prediction, reference, classes)
    total = matrix.sum(axis=0) + matrix.sum(axis=1)
    ratio: npt.NDArray[np.float64] = np.full(classes, np.nan)
    np.divide(2 * matrix.diagonal(), total, out=ratio, where=total > 0)
    return ratio


def boundary_dice(
    prediction: BinaryMask, reference: BinaryMask, tolerance: float = 2.0, ignored: BinaryMask | None = None
) -> float:
    """Return the fraction of both boundaries that is within a tolerance of the other one (surface Dice).

    The boundary of a mask are its pixels with a 4-neighbor outside it; outside the image counts as outside. Ignored
    pixels count as neither, so an edge between a mask and ignored pixels is no boundary.

    Args:
        prediction: Pixels of the class.
        reference: Pixels of the class.
        tolerance: Distance in pixels.
        ignored: Pixels that are not counted.

    Shape:
        (H, W) each

    Returns:
        0..1; NaN if neither mask has a boundary, 0 if only one has.

    Raises:
        DataError: The sizes differ, or the tolerance is negative.

    Reference:
        Nikolov et al., "Clinically applicable segmentation of head and neck anatomy", JMIR 2021.
    """
    if not tolerance >= 0:
        raise DataError(f"Expected a tolerance of 0 px or more, got {tolerance}.")
    if ignored is None:
        ignored = np.zeros(reference.shape, dtype=np.bool_)
    if not prediction.shape == reference.shape == ignored.shape:
        raise DataError(
            f"Expected masks of one size, got {prediction.shape}, {reference.shape}, ignored {ignored.shape}."
        )
    ours, theirs = _boundary(prediction, ignored), _boundary(reference, ignored)
    distances = np.concatenate([_distance_to(theirs)[ours], _distance_to(ours)[theirs]])
    return float((distances <= tolerance).mean()) if distances.size else float("nan")


def _boundary(mask: BinaryMask, ignored: BinaryMask) -> BinaryMask:
    inside: BinaryMask = ndimage.binary_erosion(mask | ignored)
    return mask & ~ignored & ~inside


def _distance_to(boundary: BinaryMask) -> npt.NDArray[np.float64]:
    if not boundary.any():
        return np.full(boundary.shape, np.inf)
    distances: npt.NDArray[np.float64] = ndimage.distance_transform_edt(~boundary)
    return distances


def _indices(values: Mask, classes: int) -> npt.NDArray[np.int64]:
    if values.size and int(values.max()) >= classes:
        raise DataError(
            f"Expected class indices below {classes} (255 = ignored, in the reference only), got {int(values.max())}: "
            "give the number of classes of these masks."
        )
    return values.astype(np.int64)
