import numpy as np
import pytest

from microseg.errors import DataError
from microseg.outputs.overlay import draw_overlay, draw_panel
from microseg.outputs.palette import class_color


def test_the_line_follows_the_border_and_the_rest_stays() -> None:
    image = np.full((1000, 1000, 3), 200, np.uint8)
    mask = np.zeros((1000, 1000), np.uint8)
    mask[400:600, 300:700] = 2
    drawn = draw_overlay(image, mask).astype(int)
    assert drawn.shape == image.shape
    assert np.abs(drawn[400, 350:650] - class_color(2)).max() < 40  # on the line
    assert (drawn[500, 500] != 200).any()  # a light fill inside …
    assert np.abs(drawn[500, 500] - 200).max() < 20  # … through which the stain shows
    assert (drawn[:380] == 200).all()
    assert drawn[405, 350:650].max() < drawn[500, 500].max() + 5


def test_a_line_between_classes_has_the_color_of_the_higher() -> None:
    image = np.full((1000, 1000, 3), 128, np.uint8)
    mask = np.ones((1000, 1000), np.uint8)
    mask[:, 500:] = 3
    drawn = draw_overlay(image, mask).astype(int)
    assert np.abs(drawn[500, 499:501] - class_color(3)).max() < 60
    assert drawn[500, 400, 1] > 128 + 5  # class 1's fill is green


def test_ignored_and_background_pixels_are_not_drawn() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1000, 900, 3), np.uint8)
    mask = np.zeros((1000, 900), np.uint8)
    mask[:, 450:] = 255
    np.testing.assert_array_equal(draw_overlay(image, mask), image)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((120, 120), (960, 960)), ((512, 256), (1024, 512)), ((1800, 900), (1200, 600)), ((1, 3), (300, 900))],
)
def test_small_images_are_enlarged_and_large_ones_reduced(size: tuple[int, int], expected: tuple[int, int]) -> None:
    image, mask = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
    assert draw_overlay(image, mask, most=1200).shape == (*expected, 3)


def test_enlarged_borders_stay_in_place() -> None:
    image, mask = np.full((100, 100, 3), 128, np.uint8), np.zeros((100, 100), np.uint8)
    mask[:, 50:] = 1
    drawn = draw_overlay(image, mask).astype(int)  # nine times
    green = np.flatnonzero(drawn[450, :, 1] - drawn[450, :, 0] > 80)
    assert green.min() >= 447
    assert green.max() <= 452


def test_enlarging_loses_no_object_of_one_pixel() -> None:
    image, mask = np.full((100, 100, 3), 128, np.uint8), np.zeros((100, 100), np.uint8)
    mask[50, 50] = 1
    drawn = draw_overlay(image, mask).astype(int)
    assert (drawn[450:459, 450:459, 1] - drawn[450:459, 450:459, 0] > 80).any()


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(DataError, match="size"):
        draw_overlay(np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4), np.uint8))


def test_panel_puts_pictures_side_by_side_with_titles_and_legend() -> None:
    red, blue = np.full((50, 100, 3), (255, 0, 0), np.uint8), np.full((80, 80, 3), (0, 0, 255), np.uint8)
    panel = draw_panel([red, blue], ["before", "after"], classes=("background", "gland"), height=100)
    is_red, is_blue = (panel == (255, 0, 0)).all(2), (panel == (0, 0, 255)).all(2)
    assert is_red.sum() == 200 * 100
    assert is_blue.sum() == 100 * 100
    assert np.flatnonzero(is_red.any(0)).max() < np.flatnonzero(is_blue.any(0)).min()
    top = int(np.flatnonzero(is_red.any(1)).min())
    assert (panel[:top] < 100).all(2).sum() > 50  # titles above
    assert (panel == class_color(1)).all(2).sum() > 50  # legend
    plain = draw_panel([red, blue], ["before", "after"], height=100)
    assert not (plain == class_color(1)).all(2).any()
    stacked = draw_panel([red, blue], ["before", "after"], columns=1, height=100)
    assert stacked.shape[0] > 200 > 100
    assert stacked.shape[1] < panel.shape[1]


def test_panel_needs_a_title_for_each_picture() -> None:
    with pytest.raises(DataError, match="title"):
        draw_panel([np.zeros((4, 4, 3), np.uint8)], [])
    with pytest.raises(DataError, match="title"):
        draw_panel([], [])
