"""Overlap of two masks: confusion matrix, Dice, intersection over union."""

from typing import Any

import numpy as np
import numpy.typing as npt

from microseg.errors import DataError

__all__ = ["confusion_matrix", "dice", "dice_from_confusion", "iou", "iou_from_confusion", "mean_dice"]

IGNORE = 255
Mask = npt.NDArray[np.uint8]
Scores = npt.NDArray[np.float64]


def confusion_matrix(prediction: Mask, reference: Mask, classes: int) -> npt.NDArray[np.int64]:
    """Count the pixels of every pair of classes; matrices of several images may be added up.

    Args:
        prediction: Class index of each pixel.
        reference: Class index of each pixel; 255 = do not count this pixel.
        classes: Number of classes.

    Shape:
        (H, W) twice → (classes, classes), rows are the reference's classes

    Raises:
        DataError: The sizes differ, or an index is not a class.
    """
    if prediction.shape != reference.shape:
        raise DataError(f"expected masks of one size, got {prediction.shape} and {reference.shape}; resize one")
    counted = reference != IGNORE
    predicted, referred = _indices(prediction[counted], classes), _indices(reference[counted], classes)
    pairs = np.bincount(referred * classes + predicted, minlength=classes * classes)
    return pairs.reshape(classes, classes).astype(np.int64)


def dice_from_confusion(matrix: npt.NDArray[np.int64]) -> Scores:
    """Dice of each class, 2·TP / (2·TP + FP + FN); nan for a class that neither mask has.

    Shape:
        (K, K) → (K,)
    """
    return _ratio(2 * matrix.diagonal(), matrix.sum(axis=0) + matrix.sum(axis=1))


def iou_from_confusion(matrix: npt.NDArray[np.int64]) -> Scores:
    """Intersection over union of each class, TP / (TP + FP + FN); nan for a class that neither mask has.

    Shape:
        (K, K) → (K,)
    """
    return _ratio(matrix.diagonal(), matrix.sum(axis=0) + matrix.sum(axis=1) - matrix.diagonal())


def dice(prediction: Mask, reference: Mask, classes: int) -> Scores:
    """Dice of each class; see `confusion_matrix` for the arguments and `dice_from_confusion` for the result."""
    return dice_from_confusion(confusion_matrix(prediction, reference, classes))


def iou(prediction: Mask, reference: Mask, classes: int) -> Scores:
    """Intersection over union of each class; see `confusion_matrix` and `iou_from_confusion`."""
    return iou_from_confusion(confusion_matrix(prediction, reference, classes))


def mean_dice(prediction: Mask, reference: Mask, classes: int) -> float:
    """Mean Dice of the foreground classes (all but index 0) that either mask has; nan if neither has any."""
    foreground = dice(prediction, reference, classes)[1:]
    present = foreground[~np.isnan(foreground)]
    return float(present.mean()) if present.size else float("nan")


def _indices(values: Mask, classes: int) -> npt.NDArray[np.int64]:
    if values.size and int(values.max()) >= classes:
        raise DataError(
            f"expected class indices below {classes} (255 = ignore, in the reference only), got {int(values.max())}; "
            "give the number of classes that the masks were made with"
        )
    return values.astype(np.int64)


def _ratio(numerator: npt.NDArray[Any], denominator: npt.NDArray[Any]) -> Scores:
    ratio: Scores = np.full(len(numerator), np.nan)
    np.divide(numerator, denominator, out=ratio, where=denominator > 0)
    return ratio
