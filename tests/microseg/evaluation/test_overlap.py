import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from microseg.errors import DataError
from microseg.evaluation.overlap import boundary_dice, confusion_matrix, dice

Mask = npt.NDArray[np.uint8]
BinaryMask = npt.NDArray[np.bool_]
CLASSES = 3
SIZE = (4, 5)
predictions = hnp.arrays(np.uint8, SIZE, elements=st.integers(0, CLASSES - 1))
binary_masks = hnp.arrays(np.bool_, (6, 7), elements=st.booleans())
references = hnp.arrays(np.uint8, SIZE, elements=st.sampled_from([0, 1, 2, 255]))


def test_dice_by_hand() -> None:
    reference = np.array([[0, 0, 1, 1], [0, 0, 1, 255]], dtype=np.uint8)
    prediction = np.array([[0, 1, 1, 1], [0, 0, 1, 1]], dtype=np.uint8)
    matrix = confusion_matrix(prediction, reference, 3)
    assert matrix.tolist() == [[3, 1, 0], [0, 3, 0], [0, 0, 0]]  # one background pixel predicted as class 1
    assert dice(prediction, reference, 3)[:2].tolist() == pytest.approx([6 / 7, 6 / 7])
    assert np.isnan(dice(prediction, reference, 3)[2])


@given(predictions, references)
def test_dice_equals_that_of_sets_of_pixels(prediction: Mask, reference: Mask) -> None:
    counted = {index for index in np.ndindex(SIZE) if reference[index] != 255}
    for k in range(CLASSES):
        ours = {index for index in counted if prediction[index] == k}
        theirs = {index for index in counted if reference[index] == k}
        if ours | theirs:
            assert dice(prediction, reference, CLASSES)[k] == 2 * len(ours & theirs) / (len(ours) + len(theirs))
        else:
            assert np.isnan(dice(prediction, reference, CLASSES)[k])


@given(predictions, predictions)
def test_dice_is_symmetric_and_bounded(first: Mask, second: Mask) -> None:
    scores = dice(first, second, CLASSES)
    np.testing.assert_array_equal(scores, dice(second, first, CLASSES))
    assert np.nanmax(scores) <= 1
    assert np.nanmin(dice(first, first, CLASSES)) == 1


@given(predictions, references, predictions, references)
def test_matrices_of_images_can_be_added(first: Mask, one: Mask, second: Mask, other: Mask) -> None:
    added = confusion_matrix(first, one, CLASSES) + confusion_matrix(second, other, CLASSES)
    whole = np.hstack([first, second]), np.hstack([one, other])
    np.testing.assert_array_equal(added, confusion_matrix(*whole, CLASSES))


def test_rejects_masks_of_other_size_or_classes() -> None:
    mask = np.zeros(SIZE, dtype=np.uint8)
    with pytest.raises(DataError, match="of one size"):
        confusion_matrix(mask, mask[:2], 2)
    with pytest.raises(DataError, match=r"below 2 .* got 4"):
        confusion_matrix(mask, mask + np.uint8(4), 2)
    with pytest.raises(DataError, match=r"below 2 .* got 255"):
        confusion_matrix(np.full(SIZE, 255, dtype=np.uint8), mask, 2)


# ---- boundaries


def square(top: int, left: int, side: int, size: int = 40) -> BinaryMask:
    mask = np.zeros((size, size), dtype=np.bool_)
    mask[top : top + side, left : left + side] = True
    return mask


def brute_distances(
    prediction: BinaryMask, reference: BinaryMask, ignored: BinaryMask
) -> tuple[list[float], list[float]]:
    """Boundary pixels found by looking at neighbors, distances by comparing all pairs."""

    def boundary(mask: BinaryMask) -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = []
        for i, j in np.ndindex(mask.shape):
            if not mask[i, j] or ignored[i, j]:
                continue
            for a, b in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                outside = not (0 <= a < mask.shape[0] and 0 <= b < mask.shape[1])
                if outside or not (mask[a, b] or ignored[a, b]):
                    found.append((i, j))
                    break
        return found

    def directed(ones: list[tuple[int, ...]], others: list[tuple[int, ...]]) -> list[float]:
        return [min((np.hypot(a - c, b - d) for c, d in others), default=np.inf) for a, b in ones]

    ours, theirs = boundary(prediction), boundary(reference)
    return directed(ours, theirs), directed(theirs, ours)


def test_boundary_dice_of_single_pixels() -> None:
    first, second = square(10, 10, 1), square(13, 14, 1)  # 3-4-5 triangle
    assert boundary_dice(first, second, tolerance=4.9) == 0
    assert boundary_dice(first, second, tolerance=5) == 1


def test_boundary_dice_of_a_shifted_square() -> None:
    # 10 px squares shifted by 1: of the 36 boundary pixels, the leading and trailing side are off by 1 px
    first, second = square(5, 5, 10), square(5, 6, 10)
    assert boundary_dice(first, second, tolerance=1) == 1
    # top and bottom side: 9 of 10 pixels each lie on the other boundary, as do no others
    assert boundary_dice(first, second, tolerance=0) == pytest.approx(18 / 36)


def test_boundary_dice_of_empty_masks() -> None:
    nothing, something = square(0, 0, 0), square(5, 5, 5)
    assert np.isnan(boundary_dice(nothing, nothing))
    for first, second in ((nothing, something), (something, nothing)):
        assert boundary_dice(first, second) == 0


@given(binary_masks, binary_masks, binary_masks, st.floats(0, 4))
def test_boundary_dice_equals_that_of_all_pairs(
    prediction: BinaryMask, reference: BinaryMask, ignored: BinaryMask, tolerance: float
) -> None:
    there, back = brute_distances(prediction, reference, ignored)
    if not there or not back:
        return
    both = np.array(there + back)
    assert boundary_dice(prediction, reference, tolerance, ignored) == pytest.approx(np.mean(both <= tolerance))


@given(binary_masks, binary_masks)
def test_boundary_dice_is_symmetric_and_one_for_equal_masks(first: BinaryMask, second: BinaryMask) -> None:
    if not first.any() or not second.any():
        return
    assert boundary_dice(first, second) == pytest.approx(boundary_dice(second, first))
    assert boundary_dice(first, first, tolerance=0) == 1


def test_edge_of_an_ignored_region_is_no_boundary() -> None:
    reference, prediction = square(0, 0, 40), square(0, 0, 40)
    prediction[:, 30:] = False  # differs in ignored pixels only
    ignored = np.zeros_like(reference)
    ignored[:, 20:] = True
    assert boundary_dice(prediction, reference, tolerance=0, ignored=ignored) == 1


def test_rejects_boundaries_of_other_size_or_tolerance() -> None:
    with pytest.raises(DataError, match="of one size"):
        boundary_dice(square(0, 0, 1), square(0, 0, 1, size=30))
    with pytest.raises(DataError, match="0 px or more"):
        boundary_dice(square(0, 0, 1), square(0, 0, 1), tolerance=-1)
