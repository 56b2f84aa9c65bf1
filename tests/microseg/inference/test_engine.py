import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from torch.nn import functional

from microseg.errors import DataError, ModelError, SettingsError
from microseg.inference.engine import Engine
from microseg.models.config import NetworkConfig
from microseg.models.files import save_network, weights_digest
from microseg.models.heads import SemanticHead
from microseg.models.network import PyramidSegmenter


class Local(PyramidSegmenter):
    """Three convolutions and a stride of 2: each output depends on 10 pixels to each side, not on the whole image."""

    def __init__(self, mpp: float | None = None) -> None:
        nn.Module.__init__(self)
        torch.manual_seed(0)
        self.config = NetworkConfig(classes=("background", "gland", "stroma"), mpp=mpp)
        self.stride = 2
        self.one, self.two = nn.Conv2d(3, 8, 5, padding=2), nn.Conv2d(8, 8, 5, padding=2)
        self.three = nn.Conv2d(8, 3, 1)
        self.norm = nn.BatchNorm2d(8)
        self.head = SemanticHead((1,), classes=3)
        self.channels = self.config.classes

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
def test_tiled_equals_whole_for_receptive_field_below_halo(size: tuple[int, int]) -> None:
    network, image = Local().eval(), noise(*size)
    whole = Engine(network, tile=512, halo=64, optimize=False).probabilities(image)
    tiled = Engine(network, tile=96, halo=20, batch=3).probabilities(image)
    assert tiled.shape == (3, *size)
    assert tiled.dtype == np.float32
    np.testing.assert_allclose(tiled, whole, atol=1e-5)
    np.testing.assert_allclose(tiled.sum(0), 1, atol=1e-5)
    assert whole.std() > 0.05  # there was something to get wrong


def test_one_tile_equals_the_network_itself() -> None:
    network, image = pyramid_network(), noise(50, 70)
    x = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = network(x).softmax(1)[0].numpy()
    np.testing.assert_allclose(Engine(network, optimize=False).probabilities(image), expected, atol=1e-5)
    np.testing.assert_allclose(Engine(network).probabilities(image), expected, atol=1e-5)


def test_batch_size_does_not_change_the_result() -> None:
    image = noise(300, 260)
    network = pyramid_network()
    one, five = (Engine(network, tile=128, halo=16, batch=n).probabilities(image) for n in (1, 5))
    np.testing.assert_allclose(one, five, atol=1e-5)


def test_blends_tiles_without_seams(brightness: Callable[..., PyramidSegmenter]) -> None:
    """Left half dark, right half bright, and a network that adds each tile's own mean: without fading, a step."""
    ramp = np.linspace(90, 165, 400)
    image = np.repeat(np.broadcast_to(ramp, (64, 400)).astype(np.uint8)[..., None], 3, axis=2)
    network = brightness(context=1.0)
    faded = Engine(network, tile=128, halo=16).probabilities(image)[1, 32]
    cut = Engine(network, tile=128, halo=0).probabilities(image)[1, 32]
    assert np.abs(np.diff(cut)).max() > 0.25  # where tiles are only put side by side
    assert np.abs(np.diff(faded)).max() < 0.04


def test_rejects_invalid_settings() -> None:
    with pytest.raises(SettingsError, match="tile"):
        Engine(pyramid_network(), tile=64, halo=64)
    with pytest.raises(SettingsError, match="batch"):
        Engine(pyramid_network(), batch=0)


def test_does_not_change_the_network() -> None:
    network = pyramid_network().train()
    network.encoder.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    Engine(network).probabilities(noise(40, 40))
    assert network.training
    assert not network.encoder.training
    assert not any(part.training for part in network.encoder.modules())
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())


def test_half_precision_is_close() -> None:
    network, image = Local().eval(), noise(64, 64)
    half, full = (Engine(network, half=half).probabilities(image) for half in (True, False))
    assert 0 < np.abs(half - full).max() < 0.05


def test_weights_digest_equals_that_of_the_file(tmp_path: Path) -> None:
    network = pyramid_network()
    save_network(tmp_path, network)
    card = json.loads((tmp_path / "network.json").read_text())
    assert weights_digest(network) == card["weights_sha256"] == Engine(network).weights_sha256
    assert Engine(network).parameters == {"tile": 640, "halo": 96, "half": False, "model_mpp": None}


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (5, 3)])
def test_segments_tiny_images(size: tuple[int, int]) -> None:
    probabilities = Engine(pyramid_network(), optimize=False).probabilities(noise(*size))
    assert probabilities.shape == (2, *size)
    assert np.isfinite(probabilities).all()


@pytest.mark.parametrize(
    ("mpp", "model_mpp", "zoom"),
    [(1.0, 0.5, 2), (0.25, 0.5, 0.5), (0.52, 0.5, 1), (0.48, 0.5, 1), (None, 0.5, 1), (0.5, None, 1)],
)
def test_zoom_to_the_pixel_size_of_the_model(mpp: float | None, model_mpp: float | None, zoom: float) -> None:
    assert Engine(Local(mpp=model_mpp)).zoom(mpp) == zoom


def test_rescales_images_to_the_pixel_size_of_the_model(brightness: Callable[..., PyramidSegmenter]) -> None:
    image = np.zeros((60, 100, 3), np.uint8)
    image[20:40, 50:90] = 255
    seen: list[tuple[int, ...]] = []
    network = brightness(mpp=0.5)
    network.register_forward_pre_hook(lambda _module, inputs: seen.append(tuple(inputs[0].shape)))
    for mpp, shape in ((1.0, (128, 208)), (0.25, (32, 64)), (0.51, (64, 112)), (None, (64, 112))):
        probabilities = Engine(network, optimize=False).probabilities(image, mpp=mpp)
        assert seen[-1][-2:] == shape  # rounded up to the stride
        assert probabilities.shape == (2, 60, 100)
        np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
        mask = probabilities.argmax(0)
        accuracy = (mask == (image[..., 0] > 127)).mean()
        assert accuracy > 0.97, mpp
    np.testing.assert_array_equal(
        Engine(network, optimize=False).probabilities(image, mpp=0.51),
        Engine(network, optimize=False).probabilities(image),
    )


def test_rejects_implausible_pixel_size(brightness: Callable[..., PyramidSegmenter]) -> None:
    with pytest.raises(DataError, match="pixel size"):
        Engine(brightness(mpp=0.25), optimize=False).probabilities(noise(32, 32), mpp=350.0)
    with pytest.raises(DataError, match="positive"):
        Engine(brightness(), optimize=False).probabilities(noise(32, 32), mpp=0.0)


@pytest.mark.parametrize("wrong", [noise(8, 8)[..., 0], noise(8, 8) / 255, noise(8, 8)[:0]])
def test_rejects_array_that_is_not_rgb(wrong: npt.NDArray[np.uint8], engine: Engine) -> None:
    with pytest.raises(DataError, match="read_image"):
        engine.probabilities(wrong)


@pytest.mark.parametrize("optimize", [True, False])
def test_probabilities_that_are_not_finite_are_refused(optimize: bool) -> None:
    network = pyramid_network()
    with torch.no_grad():
        next(network.encoder.parameters()).fill_(float("inf"))
    with pytest.raises(ModelError, match="NaN or infinity"):
        Engine(network, tile=128, halo=16, optimize=optimize).probabilities(noise(70, 70))
