"""What the figures of an image tell, and what they do not."""

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


def figures(image: Pixels, zoom: float = 1.0) -> dict[str, float]:
    described = image_features(image, zoom)
    assert described is not None
    assert described.shape == (len(APPEARANCE_FEATURES),)
    assert np.isfinite(described).all()
    return dict(zip(APPEARANCE_FEATURES, described, strict=True))


def test_levels_by_hand() -> None:
    """Of one color: nothing varies, so nothing goes together."""
    image = np.full((20, 30, 3), (128, 64, 128), np.uint8)
    density = -np.log(np.array([128, 64, 128]) / 255 * (255 / 256) + 1 / 256)
    red, green, blue = np.log(density + 0.02)
    told = figures(image)
    for level in ("mean", "strongest"):
        assert told[f"{level}_density"] == pytest.approx((red + green + blue) / 3, abs=1e-5)
        assert told[f"{level}_red_to_green"] == pytest.approx(red - green, abs=1e-5)
        assert told[f"{level}_blue_to_green"] == pytest.approx(blue - green, abs=1e-5)
    assert told["together_red_green"] == pytest.approx(0, abs=0.01)


def test_more_of_the_same_stain_changes_the_amount_and_not_the_hue(section: Pixels) -> None:
    stronger = (255 * (section / 255.0) ** 1.3).round().astype(np.uint8)  # densities 1.3 times as large
    before, after = figures(section), figures(stronger)
    assert after["mean_density"] - before["mean_density"] > 0.15
    for level in ("mean", "strongest"):
        for hue in ("red_to_green", "blue_to_green"):
            assert after[f"{level}_{hue}"] == pytest.approx(before[f"{level}_{hue}"], abs=0.05)


def test_blur_is_seen_by_the_texture_alone(section: Pixels) -> None:
    small = Image.fromarray(section).resize((128, 128), Image.Resampling.BOX)
    blurred = np.asarray(small.resize((256, 256), Image.Resampling.BICUBIC))
    before, after = figures(section), figures(blurred)
    assert after["texture_1"] < before["texture_1"] - 0.2
    assert after["mean_red_to_green"] == pytest.approx(before["mean_red_to_green"], abs=0.1)


def test_the_same_tissue_scanned_twice_as_finely_looks_the_same_at_the_models_scale(section: Pixels) -> None:
    fine = np.asarray(Image.fromarray(section).resize((512, 512), Image.Resampling.BICUBIC))
    before = figures(section)
    rescaled, ignored = (
        np.abs(np.array(list(figures(fine, zoom).values())) - list(before.values())) for zoom in (0.5, 1)
    )
    assert rescaled.max() < 0.3
    assert ignored[-3:].min() > 0.3  # the texture


def test_glass_counts_for_nothing(section: Pixels) -> None:
    beside_glass = np.full((256, 512, 3), 242, np.uint8)
    beside_glass[:, :256] = section
    alone, beside = window_features([section]), window_features([beside_glass])
    assert alone is not None
    assert beside is not None
    assert beside[:12].tolist() == pytest.approx(alone[:12].tolist())  # but the texture
    assert image_features(np.full((64, 64, 3), 242, np.uint8)) is None
    assert window_features([]) is None


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (257, 3), (700, 260)])
def test_any_size(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 200, (*shape, 3), np.uint8)
    for zoom in (1.0, 0.3, 2.5):
        figures(image, zoom)
