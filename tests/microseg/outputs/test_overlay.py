import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from skimage.color import rgb2lab

from microseg.errors import DataError
from microseg.outputs.colors import class_color, color_table
from microseg.outputs.overlay import OverlayWriter, _colors_of, _paint, draw_overlay, draw_panel
from microseg.outputs.scale_bar import bar_length, draw_scale_bar
from microseg.outputs.writers import MaskStrip
from tests.microseg.outputs.finding import image_info


def test_draws_line_along_the_border_only() -> None:
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


def test_line_between_classes_has_the_color_of_the_higher_index() -> None:
    image = np.full((1000, 1000, 3), 128, np.uint8)
    mask = np.ones((1000, 1000), np.uint8)
    mask[:, 500:] = 3
    drawn = draw_overlay(image, mask).astype(int)
    assert np.abs(drawn[500, 499:501] - class_color(3)).max() < 60
    assert drawn[500, 400, 1] > 128 + 5  # class 1's fill is green


@pytest.mark.parametrize("thin", [False, True])
def test_touching_objects_are_divided_by_a_line(thin: bool) -> None:
    image = np.full((1000, 1000, 3), 200, np.uint8)
    mask = np.zeros((1000, 1000), np.uint8)
    mask[300:700, 300:700] = 1
    numbers = mask.astype(np.int32)
    numbers[mask > 0] += np.mgrid[:1000, :1000][1][mask > 0] >= 500
    together, apart = (draw_overlay(image, mask, it, thin=thin).astype(int) for it in (None, numbers))
    assert np.abs(apart[500, 499] - class_color(1)).max() < 40
    assert np.abs(together[500, 499] - 200).max() < 30
    np.testing.assert_array_equal(together[500, 350:450], apart[500, 350:450])


def test_thin_lines_are_one_pixel_inside_of_the_object() -> None:
    image = np.full((1000, 1000, 3), 200, np.uint8)
    mask = np.zeros((1000, 1000), np.uint8)
    mask[400:600, 300:700] = 1
    drawn = draw_overlay(image, mask, thin=True).astype(int)
    assert (drawn[399] == 200).all()
    np.testing.assert_array_equal(drawn[400, 300:700], np.tile(class_color(1), (400, 1)))
    np.testing.assert_array_equal(drawn[401, 350], drawn[500, 500])


def test_overlay_of_a_slide_divides_touching_objects_and_has_a_scale_bar(tmp_path: Path) -> None:
    """A mask of 4,200 pixels is sampled at every third one, from strips of any height."""
    shape = (4200, 1200)
    mask = np.zeros(shape, np.uint8)
    mask[600:1800, 300:900] = 1
    numbers = mask.astype(np.int32)
    numbers[1200:1800] *= 2
    info = image_info(mask, mpp=0.5, instances=("gland",))
    writer = OverlayWriter(tmp_path / "a.jpg", info, lambda _: np.full((1400, 400, 3), 200, np.uint8))
    assert writer.needs_labels
    for start, stop in ((0, 700), (700, 1201), (1201, 4200)):
        writer.add_strip(MaskStrip(start, mask[start:stop], None))
    for start, stop in ((0, 1000), (1000, 1601), (1601, 4200)):
        writer.add_labels(numbers[start:stop], 2)
    writer.finish()
    drawn = np.asarray(Image.open(tmp_path / "a.jpg")).astype(int)
    assert drawn.shape == (1400, 400, 3)
    assert np.abs(drawn[399, 150:250] - drawn[300, 200]).max(axis=1).min() > 60  # the line between the two
    black = (drawn[1380:] < 60).all(axis=2).sum(axis=1)  # of 1.5 µm: 0.1 mm in 67 pixels
    assert 64 <= black.max() <= 70


@pytest.mark.parametrize(("microns", "length"), [(250, 200), (99.9, 50), (100, 100), (4321, 2000), (0.3, 0.2)])
def test_scale_bars_have_round_lengths(microns: float, length: float) -> None:
    assert bar_length(microns) == pytest.approx(length)


def test_small_pictures_have_no_scale_bar() -> None:
    picture = np.zeros((100, 100, 3), np.uint8)
    assert draw_scale_bar(picture, 0.5) is picture


@pytest.mark.parametrize("classes", [2, 5])
def test_paints_like_pillow(classes: int) -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (300, 401, 3), np.uint8)
    mask = random.integers(0, classes, (30, 41), np.uint8).repeat(10, 0).repeat(10, 1)[:, :401]
    opacity = random.integers(0, 256, (300, 401), np.uint8)
    colors = color_table()[mask] if classes > 2 else np.full_like(image, class_color(1))
    picture = Image.fromarray(image)
    picture.paste(Image.fromarray(colors), (0, 0), Image.fromarray(opacity))
    planes = image.transpose(2, 0, 1).copy()
    _paint(planes, _colors_of(mask), opacity)
    np.testing.assert_array_equal(planes.transpose(1, 2, 0), np.asarray(picture))


def test_does_not_draw_ignored_and_background_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1000, 900, 3), np.uint8)
    mask = np.zeros((1000, 900), np.uint8)
    mask[:, 450:] = 255
    np.testing.assert_array_equal(draw_overlay(image, mask), image)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((120, 120), (960, 960)), ((512, 256), (1024, 512)), ((1800, 900), (1200, 600)), ((1, 3), (300, 900))],
)
def test_enlarges_small_images_and_reduces_large_ones(size: tuple[int, int], expected: tuple[int, int]) -> None:
    image, mask = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
    assert draw_overlay(image, mask, most=1200).shape == (*expected, 3)


def test_enlarged_borders_stay_in_place() -> None:
    image, mask = np.full((100, 100, 3), 128, np.uint8), np.zeros((100, 100), np.uint8)
    mask[:, 50:] = 1
    drawn = draw_overlay(image, mask).astype(int)  # nine times
    green = np.flatnonzero(drawn[450, :, 1] - drawn[450, :, 0] > 80)
    assert green.min() >= 447
    assert green.max() <= 452


def test_enlarging_keeps_objects_of_one_pixel() -> None:
    image, mask = np.full((100, 100, 3), 128, np.uint8), np.zeros((100, 100), np.uint8)
    mask[50, 50] = 1
    drawn = draw_overlay(image, mask).astype(int)
    assert (drawn[450:459, 450:459, 1] - drawn[450:459, 450:459, 0] > 80).any()


def test_rejects_mask_of_other_size() -> None:
    with pytest.raises(DataError, match="size"):
        draw_overlay(np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4), np.uint8))


def test_panel_has_pictures_titles_and_legend() -> None:
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


def test_panel_rejects_missing_titles() -> None:
    with pytest.raises(DataError, match="title"):
        draw_panel([np.zeros((4, 4, 3), np.uint8)], [])
    with pytest.raises(DataError, match="title"):
        draw_panel([], [])


# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
VISION = {
    "normal": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def seen(colors: npt.NDArray[np.float64], vision: str) -> npt.NDArray[np.float64]:
    """CIELAB of sRGB colors in 0..1 under that color vision."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.array(VISION[vision]).T, 0, 1)
    srgb = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(rgb2lab(srgb[None])[0])


def test_first_seven_colors_differ_in_normal_and_deficient_color_vision() -> None:
    colors = np.array([class_color(index) for index in range(1, 8)]) / 255
    for vision in VISION:
        for one, other in itertools.combinations(seen(colors, vision), 2):
            assert np.linalg.norm(one - other) > 30, vision


def test_colors_of_21_classes_differ() -> None:
    assert len({class_color(index) for index in range(1, 22)}) == 21


def test_background_is_black_and_ignored_is_gray() -> None:
    table = color_table()
    assert table.shape == (256, 3)
    assert table[0].tolist() == [0, 0, 0]
    assert table[255].tolist() == [128, 128, 128]
