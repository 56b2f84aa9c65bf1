import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from microseg.errors import DataError
from microseg.evaluation.boundary import assd, boundary_dice, hausdorff_95

Mask = npt.NDArray[np.bool_]
SIZE = (6, 7)
masks = hnp.arrays(np.bool_, SIZE, elements=st.booleans())


def square(top: int, left: int, side: int, size: int = 40) -> Mask:
    mask = np.zeros((size, size), dtype=np.bool_)
    mask[top : top + side, left : left + side] = True
    return mask


def brute_distances(prediction: Mask, reference: Mask, ignored: Mask) -> tuple[list[float], list[float]]:
    """Boundary pixels found by looking at neighbors, distances by comparing all pairs."""

    def boundary(mask: Mask) -> list[tuple[int, ...]]:
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


def test_one_pixel_each_by_hand() -> None:
    first, second = square(10, 10, 1), square(13, 14, 1)  # 3-4-5 triangle
    assert hausdorff_95(first, second) == pytest.approx(5)
    assert assd(first, second) == pytest.approx(5)
    assert assd(first, second, mpp=0.5) == pytest.approx(2.5)
    assert hausdorff_95(first, second, mpp=0.5) == pytest.approx(2.5)
    assert boundary_dice(first, second, tolerance=4.9) == 0
    assert boundary_dice(first, second, tolerance=5) == 1


def test_shifted_square_by_hand() -> None:
    # 10 px squares shifted by 1: of the 36 boundary pixels, the leading and trailing side are off by 1 px
    first, second = square(5, 5, 10), square(5, 6, 10)
    assert boundary_dice(first, second, tolerance=1) == 1
    assert hausdorff_95(first, second) == 1
    # top and bottom side: 9 of 10 pixels each lie on the other boundary, as do no others
    assert boundary_dice(first, second, tolerance=0) == pytest.approx(18 / 36)
    assert assd(first, second) == pytest.approx(18 / 36)


def test_95_percent_forgive_one_outlier_in_fifty() -> None:
    reference = square(10, 5, 20)  # 76 boundary pixels
    prediction = reference.copy()
    prediction[35, 35] = True
    assert hausdorff_95(prediction, reference) == 0
    assert hausdorff_95(square(35, 35, 1), reference) > 10


def test_empty_masks() -> None:
    nothing, something = square(0, 0, 0), square(5, 5, 5)
    for measure in (boundary_dice, hausdorff_95, assd):
        assert np.isnan(measure(nothing, nothing))
    for first, second in ((nothing, something), (something, nothing)):
        assert boundary_dice(first, second) == 0
        assert hausdorff_95(first, second) == np.inf
        assert assd(first, second) == np.inf


@settings(deadline=None)
@given(masks, masks, masks, st.floats(0, 4))
def test_equals_all_pairs(prediction: Mask, reference: Mask, ignored: Mask, tolerance: float) -> None:
    there, back = brute_distances(prediction, reference, ignored)
    if not there or not back:
        return
    both = np.array(there + back)
    assert boundary_dice(prediction, reference, tolerance, ignored) == pytest.approx(np.mean(both <= tolerance))
    assert assd(prediction, reference, ignored=ignored) == pytest.approx(both.mean())
    expected = max(np.percentile(there, 95), np.percentile(back, 95))
    assert hausdorff_95(prediction, reference, ignored=ignored) == pytest.approx(expected)


@settings(deadline=None)
@given(masks, masks)
def test_symmetric_and_zero_on_itself(first: Mask, second: Mask) -> None:
    if not first.any() or not second.any():
        return
    for measure in (boundary_dice, hausdorff_95, assd):
        assert measure(first, second) == pytest.approx(measure(second, first))
    assert assd(first, first) == hausdorff_95(first, first) == 0
    assert boundary_dice(first, first, tolerance=0) == 1


def test_the_edge_of_an_ignored_region_is_no_boundary() -> None:
    reference, prediction = square(0, 0, 40), square(0, 0, 40)
    prediction[:, 30:] = False  # wrong only where it does not count
    ignored = np.zeros_like(reference)
    ignored[:, 20:] = True
    assert hausdorff_95(prediction, reference, ignored=ignored) == 0
    assert boundary_dice(prediction, reference, tolerance=0, ignored=ignored) == 1


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(DataError, match="of one size"):
        assd(square(0, 0, 1), square(0, 0, 1, size=30))
    with pytest.raises(DataError, match="0 px or more"):
        boundary_dice(square(0, 0, 1), square(0, 0, 1), tolerance=-1)
