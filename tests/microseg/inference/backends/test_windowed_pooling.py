import numpy as np
import pytest
import torch

from microseg.inference.backends.windowed_pooling import WindowedPooling
from microseg.inference.engine import Engine
from microseg.models.layers import PyramidPooling
from tests.microseg.inference.test_engine import noise, pyramid_network


def pooling() -> PyramidPooling:
    torch.manual_seed(0)
    return PyramidPooling(8, 12, (1, 2, 3)).eval()


@torch.inference_mode()
def test_input_of_one_window_is_pooled_as_a_whole() -> None:
    x, plain = torch.rand(2, 8, 20, 13), pooling()
    assert torch.equal(WindowedPooling(plain, 20, 3)(x), plain(x))


@torch.inference_mode()
def test_windows_see_what_tiles_would_see() -> None:
    """Two windows of 20 that share 6: what lies outside of the blended columns comes from one of them alone."""
    x, plain = torch.rand(1, 8, 20, 34), pooling()
    windowed = WindowedPooling(plain, 20, 3)(x)
    torch.testing.assert_close(windowed[..., :15], plain(x[..., :20])[..., :15])
    torch.testing.assert_close(windowed[..., 19:], plain(x[..., 14:])[..., 5:])
    assert windowed.shape == (1, 12, 20, 34)
    ones = WindowedPooling(torch.nn.Identity(), 20, 3)(torch.ones(1, 1, 50, 90))
    torch.testing.assert_close(ones, torch.ones(1, 1, 50, 90))  # the weights sum to one


@pytest.mark.parametrize("size", [(300, 420), (128, 500), (90, 100)])
def test_larger_tiles_give_nearly_the_probabilities_of_smaller_ones(size: tuple[int, int]) -> None:
    """The image gets brighter to the right, so that what the pooling sees depends on the tile."""
    network, ramp = pyramid_network(), np.linspace(0, 200, size[1])[:, None]
    image = (noise(*size) * 0.2 + ramp).astype(np.uint8)
    engines = [Engine(network, tile=128, halo=16, block=block) for block in (None, 320)]
    small, large = (engine.probabilities(image) for engine in engines)
    whole = Engine(network, tile=512, halo=16).probabilities(image)
    if max(size) == 100:  # one window
        np.testing.assert_allclose(large, small, atol=1e-6)
        return
    assert len(engines[1].plan(*size)) < len(engines[0].plan(*size))
    assert np.abs(large - small).max() < 0.06  # the halo is smaller than the receptive field
    assert np.abs(large - small).mean() < 0.25 * np.abs(whole - small).mean()
