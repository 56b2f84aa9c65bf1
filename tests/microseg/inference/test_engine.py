import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from torch.nn import functional

from microseg.errors import SettingsError
from microseg.inference.engine import Engine, segment_image, weights_digest
from microseg.models.config import NetworkConfig
from microseg.models.files import save_network
from microseg.models.network import PyramidSegmenter


class Local(PyramidSegmenter):
    """Three convolutions and a stride of 2: each output sees 10 pixels to each side, and nothing of the whole image."""

    def __init__(self, mpp: float | None = None) -> None:
        nn.Module.__init__(self)
        torch.manual_seed(0)
        self.config = NetworkConfig(classes=("background", "gland", "stroma"), mpp=mpp)
        self.stride = 2
        self.one, self.two = nn.Conv2d(3, 8, 5, padding=2), nn.Conv2d(8, 8, 5, padding=2)
        self.three = nn.Conv2d(8, 3, 1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(self.norm(self.one(x)).relu(), 2)
        return functional.interpolate(3 * self.three(self.two(x).relu()), scale_factor=2.0, mode="nearest")


def noise(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def pyramid_network(encoder: str = "blocks") -> PyramidSegmenter:
    torch.manual_seed(0)
    config = NetworkConfig(classes=("background", "gland"), encoder=encoder, channels=(8, 16), pyramid_channels=16)
    return PyramidSegmenter(config).eval()


@pytest.mark.parametrize("size", [(257, 190), (64, 301), (333, 334)])
def test_tiled_equals_whole_where_the_network_sees_less_than_the_halo(size: tuple[int, int]) -> None:
    network, image = Local().eval(), noise(*size)
    whole = segment_image(network, image, tile=512, halo=64)
    tiled = Engine(network, tile=96, halo=20, batch=3).probabilities(image)
    assert tiled.shape == (3, *size)
    assert tiled.dtype == np.float32
    np.testing.assert_allclose(tiled, whole, atol=1e-5)
    np.testing.assert_allclose(tiled.sum(0), 1, atol=1e-5)
    assert whole.std() > 0.05  # there was something to get wrong


def test_whole_image_equals_the_network_called_by_hand() -> None:
    network, image = pyramid_network(), noise(50, 70)
    x = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = network(x).softmax(1)[0].numpy()
    np.testing.assert_allclose(segment_image(network, image), expected, atol=1e-5)
    np.testing.assert_allclose(Engine(network).probabilities(image), expected, atol=1e-5)


def test_the_batch_does_not_change_the_result() -> None:
    image = noise(300, 260)
    network = pyramid_network()
    one, five = (Engine(network, tile=128, halo=16, batch=n).probabilities(image) for n in (1, 5))
    np.testing.assert_allclose(one, five, atol=1e-5)


def test_no_seams_even_where_tiles_disagree(brightness: Callable[..., PyramidSegmenter]) -> None:
    """Left half dark, right half bright, and a network that adds each tile's own mean: without fading, a step."""
    ramp = np.linspace(90, 165, 400)
    image = np.repeat(np.broadcast_to(ramp, (64, 400)).astype(np.uint8)[..., None], 3, axis=2)
    network = brightness(context=1.0)
    faded = Engine(network, tile=128, halo=16).probabilities(image)[1, 32]
    cut = Engine(network, tile=128, halo=0).probabilities(image)[1, 32]
    assert np.abs(np.diff(cut)).max() > 0.25  # where tiles are only put side by side
    assert np.abs(np.diff(faded)).max() < 0.04


def test_settings_that_do_not_fit_are_refused_at_once() -> None:
    with pytest.raises(SettingsError, match="tile"):
        Engine(pyramid_network(), tile=64, halo=64)
    with pytest.raises(SettingsError, match="batch"):
        Engine(pyramid_network(), batch=0)


def test_the_network_is_left_as_it_was() -> None:
    network = pyramid_network().train()
    network.encoder.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    segment_image(network, noise(40, 40))
    Engine(network).probabilities(noise(40, 40))
    assert network.training
    assert not network.encoder.training
    assert not any(part.training for part in network.encoder.modules())
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())


def test_sixteen_bits_stay_close() -> None:
    network, image = Local().eval(), noise(64, 64)
    half, full = (Engine(network, half=half).probabilities(image) for half in (True, False))
    assert 0 < np.abs(half - full).max() < 0.05


def test_the_digest_is_the_one_in_the_networks_file(tmp_path: Path) -> None:
    network = pyramid_network()
    save_network(tmp_path, network)
    card = json.loads((tmp_path / "network.json").read_text())
    assert weights_digest(network) == card["weights_sha256"] == Engine(network).weights_sha256
    assert Engine(network).parameters == {"tile": 640, "halo": 96, "half": False, "model_mpp": None}


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (5, 3)])
def test_tiny_images(size: tuple[int, int]) -> None:
    probabilities = segment_image(pyramid_network(), noise(*size))
    assert probabilities.shape == (2, *size)
    assert np.isfinite(probabilities).all()
