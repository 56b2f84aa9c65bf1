import numpy as np
import pytest

from microseg.datasets.interior import interior_map


def test_interior_rises_from_the_border_and_is_complete_at_the_margin() -> None:
    labels = np.zeros((20, 30), np.int32)
    labels[:, 5:25] = 3
    row = interior_map(labels, 4.0)[10]
    # distance from the edge of the object, in pixel centers: 0.5, 1.5, 2.5, 3.5, then more than the margin
    assert row[5:10].tolist() == [round(255 * it / 4) for it in (0.5, 1.5, 2.5, 3.5)] + [255]
    assert row[:5].tolist() == [0] * 5
    assert row[20:25].tolist() == row[5:10][::-1].tolist()


def test_border_between_touching_objects_is_no_interior() -> None:
    labels = np.ones((9, 40), np.int32)
    labels[:, 20:] = 2
    inside = interior_map(labels, 4.0)
    assert inside[4, 19] == inside[4, 20] == round(255 * 0.5 / 4)
    assert inside[4, 0] == 255  # the border of the image is none of the object


def test_small_objects_have_a_complete_interior() -> None:
    labels = np.zeros((9, 9), np.int32)
    labels[3:6, 3:6] = 1
    labels[0, 0] = 2
    inside = interior_map(labels, 4.0)
    assert inside[4, 4] == 255
    assert 0 < inside[3, 3] < 255
    assert inside[0, 0] == pytest.approx(255 / 2, abs=1)  # of a single pixel half


def test_image_of_one_object_or_none() -> None:
    assert (interior_map(np.ones((4, 4), np.int32)) == 255).all()
    assert (interior_map(np.zeros((4, 4), np.int32)) == 0).all()
