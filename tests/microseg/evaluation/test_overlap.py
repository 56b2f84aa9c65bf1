import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from microseg.errors import DataError
from microseg.evaluation.overlap import confusion_matrix, dice, dice_from_confusion, iou, iou_from_confusion, mean_dice

Mask = npt.NDArray[np.uint8]
CLASSES = 3
SIZE = (4, 5)
predictions = hnp.arrays(np.uint8, SIZE, elements=st.integers(0, CLASSES - 1))
references = hnp.arrays(np.uint8, SIZE, elements=st.sampled_from([0, 1, 2, 255]))


def test_by_hand() -> None:
    reference = np.array([[0, 0, 1, 1], [0, 0, 1, 255]], dtype=np.uint8)
    prediction = np.array([[0, 1, 1, 1], [0, 0, 1, 1]], dtype=np.uint8)
    matrix = confusion_matrix(prediction, reference, 3)
    assert matrix.tolist() == [[3, 1, 0], [0, 3, 0], [0, 0, 0]]  # one background pixel taken for class 1
    assert dice(prediction, reference, 3)[:2].tolist() == pytest.approx([6 / 7, 6 / 7])
    assert iou(prediction, reference, 3)[:2].tolist() == pytest.approx([3 / 4, 3 / 4])
    assert np.isnan(dice(prediction, reference, 3)[2])
    assert np.isnan(iou(prediction, reference, 3)[2])
    assert mean_dice(prediction, reference, 3) == pytest.approx(6 / 7)


def test_background_only_has_no_mean_dice() -> None:
    nothing = np.zeros(SIZE, dtype=np.uint8)
    assert np.isnan(mean_dice(nothing, nothing, 2))
    assert mean_dice(nothing, np.ones(SIZE, dtype=np.uint8), 2) == 0
    assert np.isnan(mean_dice(nothing, np.full(SIZE, 255, dtype=np.uint8), 2))


@settings(deadline=None)
@given(predictions, references)
def test_equals_sets_of_pixels(prediction: Mask, reference: Mask) -> None:
    counted = {index for index in np.ndindex(SIZE) if reference[index] != 255}
    for k in range(CLASSES):
        ours = {index for index in counted if prediction[index] == k}
        theirs = {index for index in counted if reference[index] == k}
        if ours | theirs:
            assert dice(prediction, reference, CLASSES)[k] == 2 * len(ours & theirs) / (len(ours) + len(theirs))
            assert iou(prediction, reference, CLASSES)[k] == len(ours & theirs) / len(ours | theirs)
        else:
            assert np.isnan(dice(prediction, reference, CLASSES)[k])


@settings(deadline=None)
@given(predictions, predictions)
def test_symmetric_and_bounded(first: Mask, second: Mask) -> None:
    scores, shares = dice(first, second, CLASSES), iou(first, second, CLASSES)
    np.testing.assert_array_equal(scores, dice(second, first, CLASSES))
    np.testing.assert_allclose(scores, 2 * shares / (1 + shares))
    assert np.nanmax(scores) <= 1
    assert np.nanmin(dice(first, first, CLASSES)) == 1


@settings(deadline=None)
@given(predictions, references, predictions, references)
def test_matrices_of_images_add_up(first: Mask, one: Mask, second: Mask, other: Mask) -> None:
    added = confusion_matrix(first, one, CLASSES) + confusion_matrix(second, other, CLASSES)
    whole = np.hstack([first, second]), np.hstack([one, other])
    np.testing.assert_array_equal(added, confusion_matrix(*whole, CLASSES))
    np.testing.assert_array_equal(dice_from_confusion(added), dice(*whole, CLASSES))
    np.testing.assert_array_equal(iou_from_confusion(added), iou(*whole, CLASSES))


def test_masks_that_do_not_fit_are_refused() -> None:
    mask = np.zeros(SIZE, dtype=np.uint8)
    with pytest.raises(DataError, match="of one size"):
        confusion_matrix(mask, mask[:2], 2)
    with pytest.raises(DataError, match=r"below 2 .* got 4"):
        confusion_matrix(mask, mask + np.uint8(4), 2)
    with pytest.raises(DataError, match=r"below 2 .* got 255"):
        confusion_matrix(np.full(SIZE, 255, dtype=np.uint8), mask, 2)
