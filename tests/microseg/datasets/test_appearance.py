"""Appearance features depend on stain, texture and scale, and on nothing else."""

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from microseg.datasets.appearance import APPEARANCE_FEATURES, image_features, window_features
from microseg.synthetic.labs import LAB_A, generate_image

Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def section() -> Pixels:
    return generate_image(LAB_A, 256, 1.0, seed=0)[0]


def features(image: Pixels, zoom: float = 1.0) -> dict[str, float]:
    values = image_features(image, zoom)
    assert values is not None
    assert values.shape == (len(APPEARANCE_FEATURES),)
    assert np.isfinite(values).all()
    return dict(zip(APPEARANCE_FEATURES, values, strict=True))


def test_density_features_of_one_color() -> None:
    """Without variance there is no correlation."""
    image = np.full((20, 30, 3), (128, 64, 128), np.uint8)
    density = -np.log(np.array([128, 64, 128]) / 255 * (255 / 256) + 1 / 256)
    red, green, blue = np.log(density + 0.02)
    found = features(image)
    for level in ("mean", "p95"):
        assert found[f"{level}_density"] == pytest.approx((red + green + blue) / 3, abs=1e-5)
        assert found[f"{level}_red_to_green"] == pytest.approx(red - green, abs=1e-5)
        assert found[f"{level}_blue_to_green"] == pytest.approx(blue - green, abs=1e-5)
    assert found["correlation_red_green"] == pytest.approx(0, abs=0.01)


def test_amount_of_stain_changes_density_but_not_hue(section: Pixels) -> None:
    stronger = (255 * (section / 255.0) ** 1.3).round().astype(np.uint8)  # densities 1.3 times as large
    before, after = features(section), features(stronger)
    assert after["mean_density"] - before["mean_density"] > 0.15
    for level in ("mean", "p95"):
        for hue in ("red_to_green", "blue_to_green"):
            assert after[f"{level}_{hue}"] == pytest.approx(before[f"{level}_{hue}"], abs=0.05)


def test_blur_changes_texture_only(section: Pixels) -> None:
    small = Image.fromarray(section).resize((128, 128), Image.Resampling.BOX)
    blurred = np.asarray(small.resize((256, 256), Image.Resampling.BICUBIC))
    before, after = features(section), features(blurred)
    assert after["texture_1"] < before["texture_1"] - 0.2
    assert after["mean_red_to_green"] == pytest.approx(before["mean_red_to_green"], abs=0.1)


def test_features_are_those_at_the_scale_of_the_model(section: Pixels) -> None:
    fine = np.asarray(Image.fromarray(section).resize((512, 512), Image.Resampling.BICUBIC))
    before = features(section)
    rescaled, ignored = (
        np.abs(np.array(list(features(fine, zoom).values())) - list(before.values())) for zoom in (0.5, 1)
    )
    assert rescaled.max() < 0.3
    assert ignored[-3:].min() > 0.3  # the texture


def test_glass_is_excluded_from_color_features(section: Pixels) -> None:
    beside_glass = np.full((256, 512, 3), 242, np.uint8)
    beside_glass[:, :256] = section
    alone, beside = window_features([section]), window_features([beside_glass])
    assert alone is not None
    assert beside is not None
    assert beside[:12].tolist() == pytest.approx(alone[:12].tolist())  # but the texture
    assert image_features(np.full((64, 64, 3), 242, np.uint8)) is None
    assert window_features([]) is None


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (257, 3), (700, 260)])
def test_images_of_any_size(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 200, (*shape, 3), np.uint8)
    for zoom in (1.0, 0.3, 2.5):
        features(image, zoom)
