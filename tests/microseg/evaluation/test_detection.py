import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linear_sum_assignment

from microseg.errors import DataError
from microseg.evaluation.detection import (
    IOU_THRESHOLDS,
    count_error,
    detection_f1,
    matched_ious,
    mean_detection_f1,
    panoptic_quality,
)
from microseg.evaluation.objects import ObjectOverlap

Labels = npt.NDArray[np.int32]
label_images = hnp.arrays(np.int32, (5, 6), elements=st.sampled_from([0, 0, 1, 2, 7]))


def overlap(prediction: object, reference: object) -> ObjectOverlap:
    return ObjectOverlap.between(np.array(prediction, np.int32), np.array(reference, np.int32))


#                    IoU 4/5            IoU 2/4 (no match)  nothing   a miss
PREDICTION = [[1, 1, 1, 1, 0, 0, 2, 2, 2, 0, 0, 3, 3, 0, 0, 0]]
REFERENCE_ = [[5, 5, 5, 5, 5, 0, 0, 6, 6, 6, 0, 0, 0, 0, 8, 8]]


def test_scores_by_hand() -> None:
    found = overlap(PREDICTION, REFERENCE_)
    np.testing.assert_allclose(matched_ious(found), [4 / 5])
    assert detection_f1(found) == pytest.approx(2 * 1 / (3 + 3))
    assert detection_f1(found, 0.8) == 0  # above the threshold, not at it
    # thresholds 0.5, 0.55 … 0.75 are below 0.8: six of ten
    assert mean_detection_f1(found) == pytest.approx(6 / 10 * 2 / 6)
    assert panoptic_quality(found) == pytest.approx(0.8 / (1 + (2 + 2) / 2))  # ΣIoU / (TP + (FP + FN) / 2)
    assert count_error(found) == 0
    assert count_error(overlap([[1, 2, 3]], [[1, 1, 1]])) == 2
    assert count_error(overlap([[1, 1, 0]], [[1, 2, 3]])) == pytest.approx(2 / 3)


def test_two_halves_of_an_object_do_not_match_it() -> None:
    assert detection_f1(overlap([[1, 1, 2, 2]], [[1, 1, 1, 1]])) == 0


def test_scores_of_no_objects() -> None:
    none = overlap([[0, 0]], [[0, 0]])
    assert np.isnan([detection_f1(none), mean_detection_f1(none), panoptic_quality(none), count_error(none)]).all()
    for one in (overlap([[1, 0]], [[0, 0]]), overlap([[0, 0]], [[1, 0]])):
        assert (detection_f1(one), panoptic_quality(one), count_error(one)) == (0, 0, 1)


@pytest.mark.parametrize("threshold", [0.4, 1.0])
def test_threshold_that_does_not_match_uniquely_is_refused(threshold: float) -> None:
    with pytest.raises(DataError, match=r"threshold of 0\.5 or more"):
        matched_ious(overlap([[1]], [[1]]), threshold)


@settings(max_examples=100)
@given(label_images, label_images, st.sampled_from(IOU_THRESHOLDS))
def test_matches_are_those_of_an_optimal_assignment(prediction: Labels, reference: Labels, threshold: float) -> None:
    ours, theirs = ([labels == k for k in np.unique(labels) if k] for labels in (prediction, reference))
    iou = np.array([[(a & b).sum() / (a | b).sum() for b in theirs] for a in ours]).reshape(len(ours), len(theirs))
    rows, columns = linear_sum_assignment(-np.where(iou > threshold, iou, 0))
    best = iou[rows, columns]
    best = best[best > threshold]
    found = ObjectOverlap.between(prediction, reference)
    np.testing.assert_allclose(sorted(matched_ious(found, threshold)), sorted(best))
    if ours or theirs:
        assert detection_f1(found, threshold) == pytest.approx(2 * len(best) / (len(ours) + len(theirs)))
