import numpy as np
import pytest
from scipy import ndimage

from microseg.datasets.fields import FieldRecipe, choose_fields, labelled_fields, spread
from microseg.slides.artifacts import is_out_of_focus, pen_map, sharpness
from microseg.slides.slide import ArraySlide
from microseg.slides.tissue import tissue_map
from microseg.synthetic.labs import LAB_A, LAB_B
from microseg.synthetic.slides import generate_slide

RECIPE = FieldRecipe(fields=8, microns=256)


@pytest.fixture(scope="module")
def made():
    return generate_slide(LAB_A, 2048, 1.0, 0, tissue=0.4, block=256)


def choose(image, recipe=RECIPE, mpp=1.0):
    return choose_fields(ArraySlide(image, None, mpp), mpp, recipe)


def test_chooses_fields_of_tissue(made):
    found = choose(made.image)
    assert len(found.fields) == 8
    assert len({field.box for field in found.fields}) == 8
    assert found.tissue == pytest.approx(0.4, abs=0.06)
    assert (found.pen, found.out_of_focus) == (0, 0)
    for field in found.fields:
        left, top, right, bottom = field.box
        assert (right - left, bottom - top) == (256, 256)
        assert (made.image[top:bottom, left:right] != 244).any(2).mean() > 0.4


def test_side_of_a_field_is_in_microns_and_bounded():
    assert [FieldRecipe(microns=512).side(mpp) for mpp in (0.25, 0.5, 1.0, 4.0, 0.1)] == [2048, 1024, 512, 256, 2048]


def test_spreads_fields_over_stain():
    """Two stains on one slide, the second one rare: it is chosen as well."""
    one, other = (generate_slide(lab, 1024, 1.0, 3, tissue=0.5, block=128) for lab in (LAB_A, LAB_B))
    image = one.image.copy()
    image[:, 640:] = other.image[:, 640:]
    fields = choose(image, FieldRecipe(fields=6, microns=128)).fields
    assert len({field.cluster for field in fields}) > 1
    assert any(field.box[0] > 640 for field in fields)
    assert any(field.box[2] < 640 for field in fields)


def test_leaves_out_what_is_out_of_focus(made):
    blurred = made.image.copy()
    blurred[:, 1024:] = ndimage.gaussian_filter(made.image, (5, 5, 0))[:, 1024:]
    found = choose(blurred, FieldRecipe(fields=32, microns=256))
    assert found.out_of_focus > 0.2
    assert all(field.box[0] < 1024 for field in found.fields)


def test_leaves_out_marker_pen(made):
    marked = made.image.copy()
    marked[800:1000, 500:1500] = (25, 60, 190)  # a pixel is a micron
    found = choose(marked, FieldRecipe(fields=32, microns=256))
    assert found.pen > 0.02
    assert all(field.box[3] <= 800 or field.box[1] >= 1000 for field in found.fields)


@pytest.mark.parametrize("ink", [(25, 60, 190), (10, 120, 60), (15, 15, 20), (200, 25, 40)])
def test_finds_pen_of_each_color(made, ink):
    thumbnail = made.image[::2, ::2].copy()
    thumbnail[300:330, 300:700] = ink
    found = pen_map(thumbnail, tissue_map(thumbnail).tissue, 16.0)
    assert found[305:325, 310:690].mean() > 0.95
    assert found[:280].sum() + found[350:].sum() == 0


@pytest.mark.parametrize(
    ("color", "mpp"),
    [((62, 25, 64), 8.0), ((15, 15, 20), 2.0), ((25, 60, 190), 2.0)],
    ids=["dark keratin", "narrow and black", "narrow and blue"],
)
def test_dark_and_narrow_structures_are_no_pen(made, color, mpp):
    thumbnail = made.image[::2, ::2].copy()
    thumbnail[300:330, 300:700] = color  # 30 pixels: 60 µm where a pixel has 2
    assert not pen_map(thumbnail, tissue_map(thumbnail).tissue, mpp).any()


def test_a_stain_is_no_pen():
    blue = np.full((400, 400, 3), 245, np.uint8)
    blue[100:300, 100:300] = (40, 70, 200)  # all of the tissue
    assert not pen_map(blue, tissue_map(blue).tissue, 16.0).any()


def test_sharpness_falls_with_blur(made):
    left, top, *_ = made.tissue[0]
    image = made.image[top : top + 256, left : left + 256]
    values = [sharpness(ndimage.gaussian_filter(image, (sigma, sigma, 0))) for sigma in (0, 1, 2, 4, 8)]
    assert values == sorted(values, reverse=True)
    assert not is_out_of_focus(image)
    assert is_out_of_focus(ndimage.gaussian_filter(image, (5, 5, 0)))
    assert not is_out_of_focus(np.full((64, 64, 3), 200, np.uint8))  # nothing to focus on


def test_small_regions_get_what_is_around_them():
    ((field, part),) = labelled_fields([(10, 500, 110, 600)], 2000, 2000, 512)
    assert (field.box, part) == ((0, 294, 512, 806), (10, 500, 110, 600))


def test_large_regions_are_cut_into_parts():
    found = list(labelled_fields([(0, 0, 5000, 1000)], 5000, 5000, 512))
    assert [part for _, part in found] == [(0, 0, 1667, 1000), (1667, 0, 3333, 1000), (3333, 0, 5000, 1000)]
    assert all(field.box == part for field, part in found)


def test_regions_are_clipped_to_the_slide():
    assert [field.box for field, _ in labelled_fields([(-50, 1900, 3000, 2100)], 2000, 2000, 512)] == [
        (0, 1488, 2000, 2000)
    ]
    assert list(labelled_fields([(2000, 0, 2100, 50)], 2000, 2000, 512)) == []


def test_the_first_fields_are_spread_over_slides_and_clusters():
    places = [("a", number % 3) for number in range(30)] + [("b", 0)] * 20 + [("c", 7)]
    order = spread(places, seed=0)
    assert sorted(order) == list(range(51))
    assert sorted(places[index][0] for index in order[:3]) == ["a", "b", "c"]
    assert {places[index][1] for index in order[:7] if places[index][0] == "a"} == {0, 1, 2}
    assert spread(places, seed=0) == order != spread(places, seed=1)
