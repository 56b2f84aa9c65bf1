from dataclasses import replace

import numpy as np
import pytest

from microseg.synthetic.cells import CELLS_DAB, CELLS_HE, SMEAR
from microseg.synthetic.labs import generate_image


def draw(profile, count=4, size=192):
    images, masks = zip(*(generate_image(profile, size, 0.5, seed) for seed in range(count)), strict=True)
    return np.stack(images), np.stack(masks)


def test_image_depends_on_the_seed_only():
    image, mask = generate_image(CELLS_HE, 64, 0.5, 3)
    again, mask_again = generate_image(CELLS_HE, 64, 0.5, 3)
    assert image.shape == (64, 64, 3)
    assert image.dtype == mask.dtype == np.uint8
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(mask, mask_again)
    assert (image != generate_image(CELLS_HE, 64, 0.5, 4)[0]).mean() > 0.5


def test_foreground_follows_the_density():
    share = {times: (draw(replace(CELLS_DAB, density=2300.0 * times), 6)[1] > 0).mean() for times in (0.2, 1, 4)}
    assert share[1] == pytest.approx(0.11, abs=0.03)
    assert share[0.2] / share[1] == pytest.approx(0.2, abs=0.1)
    assert share[4] / share[1] == pytest.approx(4, abs=0.6)


def test_only_the_number_of_cells_changes_with_the_density():
    """The colors of nuclei and ground stay; they are medians, since rims of nuclei count as ground."""
    colors = []
    for density in (1000.0, 4000.0):
        images, masks = draw(replace(CELLS_HE, density=density))
        colors.append([np.median(images[masks == label], axis=0) for label in (0, 1)])
    np.testing.assert_allclose(colors[0], colors[1], atol=12)


def test_nuclei_are_dark_and_small_in_the_bodies_of_a_smear():
    images, masks = draw(SMEAR, 6, 256)
    gray = images.mean(axis=-1)
    glass = np.percentile(gray, 95)
    body = (gray < 0.9 * glass) & (masks == 0)
    assert 0.005 < (masks > 0).mean() < 0.03
    assert body.mean() > 8 * (masks > 0).mean()
    assert gray[masks > 0].mean() < 0.75 * gray[body].mean()


def test_slide_may_be_empty():
    profile = replace(CELLS_HE, empty=0.5)
    empty = [profile.vary(np.random.default_rng(seed)).density == 0 for seed in range(60)]
    assert 0.3 < np.mean(empty) < 0.7
    assert not generate_image(replace(CELLS_HE, density=0.0), 64, 0.5, 0)[1].any()


def test_lymphocytes_are_a_class_where_typed():
    typed = replace(CELLS_HE, typed=True, lymphocytes=0.5)
    assert typed.classes == ("background", "nucleus", "lymphocyte")
    _, masks = draw(typed)
    assert (masks == 1).sum() > (masks == 2).sum() > 0.1 * (masks == 1).sum()
    _, merged = draw(replace(typed, typed=False))
    np.testing.assert_array_equal(merged > 0, masks > 0)
    assert not (draw(replace(typed, lymphocytes=0.0))[1] == 2).any()
