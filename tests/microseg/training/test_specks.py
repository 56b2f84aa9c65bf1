import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from microseg.training.specks import remove_specks, smallest_regions


def squares(*sides: int, label: int = 1, size: int = 200) -> np.ndarray:
    """Squares beside one another, none at the border."""
    mask = np.zeros((size, size), np.uint8)
    left = 2
    for side in sides:
        mask[2 : 2 + side, left : left + side] = label
        left += side + 2
    return mask


def test_the_smallest_regions_are_half_of_those_that_count():
    mask = squares(20, 30, 40)
    mask[10:15, 60:65] = 0
    assert smallest_regions([(mask, 1.0)], 2) == (0.5 * 5**2, 0.5 * 20**2)


def test_regions_with_hardly_any_area_do_not_count():
    assert smallest_regions([(squares(2, 40, 40, 40), 1.0)], 2)[1] == 0.5 * 40**2


def test_areas_are_those_at_the_models_scale():
    assert smallest_regions([(squares(20), 1.5)], 2)[1] == pytest.approx(0.5 * 30**2)


def test_regions_that_the_border_cuts_do_not_count():
    mask = squares(30)
    mask[100:105, :3] = 1
    assert smallest_regions([(mask, 1.0)], 2)[1] == 0.5 * 30**2


def test_a_class_that_is_never_within_an_image_has_the_largest_of_the_others():
    assert smallest_regions([(squares(20), 1.0)], 3) == (200, 200, 200)


def test_without_any_region_there_are_no_specks():
    assert smallest_regions([(np.zeros((9, 9), np.uint8), 1.0)], 2) == (0, 0)


def test_specks_become_what_surrounds_them_and_objects_stay():
    cleaned = remove_specks(squares(5, 30), (0.0, 100.0))
    expected = squares(5, 30)
    expected[:, :8] = 0
    assert (cleaned == expected).all()


def test_holes_are_filled():
    mask = squares(40)
    mask[20:23, 20:23] = 0
    assert (remove_specks(mask, (50.0, 50.0)) == squares(40)).all()


def test_the_scale_of_the_mask_counts():
    mask = squares(10)
    assert (remove_specks(mask, (0.0, 150.0), zoom=1.3) == mask).all()  # 169 px² at the model's scale
    assert not remove_specks(mask, (0.0, 150.0)).any()


def test_regions_at_the_border_are_left():
    mask = np.zeros((50, 50), np.uint8)
    mask[:3, 10:13] = 1
    assert (remove_specks(mask, (0.0, 100.0)) == mask).all()


def test_a_speck_within_another_class_takes_that_class():
    mask = squares(40, label=1)
    mask[20:23, 20:23] = 2
    assert (remove_specks(mask, (0.0, 0.0, 50.0)) == squares(40, label=1)).all()


@given(arrays(np.uint8, (12, 15), elements=st.integers(0, 2)), st.floats(0, 40))
def test_any_mask_keeps_its_size_and_its_classes(mask: np.ndarray, area: float):
    cleaned = remove_specks(mask, (area, area, area))
    assert cleaned.shape == mask.shape
    assert cleaned.dtype == np.uint8
    assert set(np.unique(cleaned)) <= set(np.unique(mask))


def test_without_specks_the_mask_is_the_same():
    mask = squares(5, 30)
    assert remove_specks(mask, (0.0, 0.0)) is mask
