from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from microseg.errors import DataError
from microseg.inference.engine import Engine, segment_image
from microseg.inference.rescaling import engine_zoom
from microseg.models.network import PyramidSegmenter


def noise(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("mpp", "model_mpp", "zoom"),
    [(1.0, 0.5, 2), (0.25, 0.5, 0.5), (0.52, 0.5, 1), (0.48, 0.5, 1), (None, 0.5, 1), (0.5, None, 1)],
)
def test_zoom_by_hand(mpp: float | None, model_mpp: float | None, zoom: float) -> None:
    assert engine_zoom(mpp, model_mpp) == zoom


def test_images_of_another_scale_are_brought_to_the_models(brightness: Callable[..., PyramidSegmenter]) -> None:
    image = np.zeros((60, 100, 3), np.uint8)
    image[20:40, 50:90] = 255
    seen: list[tuple[int, ...]] = []
    network = brightness(mpp=0.5)
    network.register_forward_pre_hook(lambda _module, inputs: seen.append(tuple(inputs[0].shape)))
    for mpp, shape in ((1.0, (128, 208)), (0.25, (32, 64)), (0.51, (64, 112)), (None, (64, 112))):
        probabilities = segment_image(network, image, mpp=mpp)
        assert seen[-1][-2:] == shape  # rounded up to the stride
        assert probabilities.shape == (2, 60, 100)
        np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
        mask = probabilities.argmax(0)
        cohen_kappa = (mask == (image[..., 0] > 127)).mean()
        assert cohen_kappa > 0.97, mpp
    np.testing.assert_array_equal(segment_image(network, image, mpp=0.51), segment_image(network, image))


def test_a_wrong_pixel_size_is_refused_before_memory_runs_out(brightness: Callable[..., PyramidSegmenter]) -> None:
    with pytest.raises(DataError, match="pixel size"):
        segment_image(brightness(mpp=0.25), noise(32, 32), mpp=350.0)
    with pytest.raises(DataError, match="positive"):
        segment_image(brightness(), noise(32, 32), mpp=0.0)


@pytest.mark.parametrize("wrong", [noise(8, 8)[..., 0], noise(8, 8) / 255, noise(8, 8)[:0]])
def test_what_is_no_rgb_image_is_refused(wrong: npt.NDArray[np.uint8], engine: Engine) -> None:
    with pytest.raises(DataError, match="read_image"):
        engine.probabilities(wrong)
