"""Detection metrics: predicted and reference objects that are matched by their intersection over union (IoU)."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from microseg.errors import DataError
from microseg.evaluation.objects import ObjectOverlap

__all__ = ["IOU_THRESHOLDS", "count_error", "detection_f1", "matched_ious", "mean_detection_f1", "panoptic_quality"]

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""Thresholds of the mean F1 score: 0.5, 0.55 … 0.95."""


def matched_ious(overlap: ObjectOverlap, threshold: float = 0.5) -> npt.NDArray[np.float64]:
    """IoU of each predicted object with the reference object that it matches.

    Two objects match if their IoU is above the threshold. From 0.5 on, an object has at most one match.

    Args:
        overlap: Overlap of predicted and reference objects.
        threshold: 0.5 or more, below 1.

    Returns:
        One value for each matched pair, (M,).

    Raises:
        DataError: The threshold is out of range.
    """
    if not 0.5 <= threshold < 1:
        raise DataError(f"Expected an IoU threshold of 0.5 or more and below 1, got {threshold}.")
    pairs = overlap.overlap.tocoo()
    shared = np.asarray(pairs.data, np.float64)
    iou = shared / (overlap.predicted[pairs.row] + overlap.reference[pairs.col] - shared)
    return np.asarray(iou[iou > threshold], np.float64)


def detection_f1(overlap: ObjectOverlap, threshold: float = 0.5) -> float:
    """Return the F1 score of detection: 2·TP / (P + R), with TP matched pairs of P predicted and R reference objects.

    Returns:
        0..1; NaN if there are no objects at all.

    Reference:
        Caicedo et al., "Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl", Nature Methods
        2019.
    """
    total = len(overlap.predicted) + len(overlap.reference)
    return 2 * len(matched_ious(overlap, threshold)) / total if total else float("nan")


def mean_detection_f1(overlap: ObjectOverlap, thresholds: Sequence[float] = IOU_THRESHOLDS) -> float:
    """Return the mean of `detection_f1` over several thresholds: how well objects are outlined, too."""
    return float(np.mean([detection_f1(overlap, threshold) for threshold in thresholds]))


def panoptic_quality(overlap: ObjectOverlap) -> float:
    """Return the panoptic quality: `detection_f1` times the mean IoU of the matched pairs.

    Returns:
        0..1; NaN if there are no objects at all.

    Reference:
        Kirillov et al., "Panoptic segmentation", CVPR 2019.
    """
    total = len(overlap.predicted) + len(overlap.reference)
    return 2 * float(matched_ious(overlap).sum()) / total if total else float("nan")


def count_error(overlap: ObjectOverlap) -> float:
    """Return the error of the number of objects: |P − R| / R.

    Returns:
        0 or more; NaN if there are no objects at all, 1 if only the prediction has some.
    """
    predicted, reference = len(overlap.predicted), len(overlap.reference)
    if not reference:
        return 1.0 if predicted else float("nan")
    return abs(predicted - reference) / reference
