import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from microseg.training.adaptation.region_rules import RegionRules, region_rules, remove_implausible

Mask = npt.NDArray[np.uint8]


def squares(*sides: int, label: int = 1, size: int = 200) -> Mask:
    """Squares in a row, none at the border."""
    mask = np.zeros((size, size), np.uint8)
    left = 2
    for side in sides:
        mask[2 : 2 + side, left : left + side] = label
        left += side + 2
    return mask


def cells(nucleated: int, bare: int = 0) -> Mask:
    """Squares of cytoplasm (1) in a row, the first ``nucleated`` with a nucleus (2) at the center."""
    mask = np.zeros((14, 4 + 14 * (nucleated + bare)), np.uint8)
    for number in range(nucleated + bare):
        left = 4 + 14 * number
        mask[2:12, left : left + 10] = 1
        if number < nucleated:
            mask[5:9, left + 3 : left + 7] = 2
    return mask


CELLS = RegionRules((0.0,) * 3, (0.0,) * 3, ((), (2,), (1,)))


def specks(*smallest: float) -> RegionRules:
    return RegionRules(tuple(smallest), (0.0,) * len(smallest), ((),) * len(smallest))


def test_smallest_area_is_half_of_the_smallest_counted_region() -> None:
    mask = squares(20, 30, 40)
    mask[10:15, 60:65] = 0
    assert region_rules([(mask, 1.0)], 2).smallest == (0.5 * 5**2, 0.5 * 20**2)


def test_outliers_do_not_count() -> None:
    assert region_rules([(squares(2, 40, 40, 40), 1.0)], 2).smallest[1] == 0.5 * 40**2


def test_areas_are_at_the_models_scale() -> None:
    assert region_rules([(squares(20), 1.5)], 2).smallest[1] == pytest.approx(0.5 * 30**2)


def test_regions_at_the_border_do_not_count() -> None:
    mask = squares(30)
    mask[100:105, :3] = 1
    assert region_rules([(mask, 1.0)], 2).smallest[1] == 0.5 * 30**2


def test_class_without_complete_regions_gets_the_largest_area_of_the_others() -> None:
    assert region_rules([(squares(20), 1.0)], 3).smallest == (200, 200, 200)


def test_no_rules_without_any_region() -> None:
    rules = region_rules([(np.zeros((9, 9), np.uint8), 1.0)], 2)
    assert rules == RegionRules((0, 0), (0, 0), ((), ()))
    assert remove_implausible(squares(3), rules) is not None
    assert (remove_implausible(squares(3), rules) == squares(3)).all()


def test_smallest_area_shrinks_with_the_typical_region() -> None:
    rules = region_rules([(squares(20, 30, 30, 30), 1.0)], 2)
    assert rules.typical == (0, 30**2)
    assert rules.for_lab([squares(3, 15, 15)], 1.0).smallest[1] == pytest.approx(rules.smallest[1] / 4)
    assert rules.for_lab([squares(3, 15, 15)], 2.0).smallest == rules.smallest  # at the model's scale they are not
    assert rules.for_lab([squares(50)], 1.0).smallest == rules.smallest  # larger regions have no effect
    assert rules.for_lab([np.zeros((9, 9), np.uint8)], 1.0) == rules


def test_estimates_obligatory_neighbors() -> None:
    assert region_rules([(cells(12), 1.0)], 3).touches == ((), (2,), (1,))
    assert region_rules([(cells(12, bare=2), 1.0)], 3).touches == ((), (), (1,))  # not always
    assert region_rules([(cells(4), 1.0)], 3).touches == ((), (), ())  # too few regions


def test_specks_are_replaced_and_objects_remain() -> None:
    expected = squares(5, 30)
    expected[:, :8] = 0
    assert (remove_implausible(squares(5, 30), specks(0, 100)) == expected).all()


def test_holes_are_filled() -> None:
    mask = squares(40)
    mask[20:23, 20:23] = 0
    assert (remove_implausible(mask, specks(50, 50)) == squares(40)).all()


def test_areas_depend_on_the_scale_of_the_mask() -> None:
    mask = squares(10)
    assert (remove_implausible(mask, specks(0, 150), zoom=1.3) == mask).all()  # 169 px² at the model's scale
    assert not remove_implausible(mask, specks(0, 150)).any()


def test_small_regions_at_the_border_remain() -> None:
    mask = np.zeros((50, 50), np.uint8)
    mask[:3, 10:13] = 1
    assert (remove_implausible(mask, specks(0, 100)) == mask).all()


def test_speck_within_another_class_takes_that_class() -> None:
    mask = squares(40)
    mask[20:23, 20:23] = 2
    assert (remove_implausible(mask, specks(0, 0, 50)) == squares(40)).all()


def test_cytoplasm_without_a_nucleus_is_background() -> None:
    expected = cells(3, bare=2)
    expected[:, 4 + 14 * 3 :] = 0
    assert (remove_implausible(cells(3, bare=2), CELLS) == expected).all()


def test_cytoplasm_without_a_nucleus_at_the_border_is_ignored() -> None:
    mask = cells(2, bare=1)[:, :-4]
    expected = mask.copy()
    expected[2:12, 32:] = 255
    assert (remove_implausible(mask, CELLS) == expected).all()


def test_speck_does_not_count_as_neighbor() -> None:
    """A nucleus of one pixel is removed first, and then the cytoplasm around it has none."""
    mask = cells(0, bare=1)
    mask[6, 8] = 2
    assert not remove_implausible(mask, RegionRules((0, 0, 4), CELLS.typical, CELLS.touches)).any()


@given(arrays(np.uint8, (12, 15), elements=st.integers(0, 2)), st.floats(0, 40))
def test_masks_keep_their_size_and_classes(mask: Mask, area: float) -> None:
    cleaned = remove_implausible(mask, RegionRules((area,) * 3, CELLS.typical, CELLS.touches))
    assert cleaned.shape == mask.shape
    assert cleaned.dtype == np.uint8
    assert set(np.unique(cleaned)) <= {*np.unique(mask), 255}


def test_plausible_mask_is_not_changed() -> None:
    mask = cells(3)
    assert remove_implausible(mask, CELLS) is mask
