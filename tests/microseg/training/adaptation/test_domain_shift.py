"""With a network trained to segment dark disks on a light background."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from microseg.models.config import NetworkConfig
from microseg.models.losses import segmentation_loss
from microseg.models.network import PyramidSegmenter
from microseg.training.adaptation import domain_shift
from microseg.training.adaptation.domain_shift import (
    ViewPredictions,
    estimate_domain_shift,
    modest_scale,
    predict_at,
    to_batch,
)
from microseg.training.adaptation.normalization import read_statistics

Image = npt.NDArray[np.uint8]


def disks(seed: int, *, radius: float = 6, side: int = 96, light: float = 200, dark: float = 90) -> tuple[Image, Image]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    mask = np.zeros((side, side), bool)
    for _ in range(round(0.25 * side * side / (3.14 * radius * radius))):
        top, left = rng.uniform(0, side, 2)
        mask |= (y - top) ** 2 + (x - left) ** 2 < radius**2
    image = np.where(mask, dark, light)[..., None] + rng.normal(0, 12, (side, side, 3))
    return np.clip(image, 0, 255).astype(np.uint8), mask.astype(np.uint8)


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    config = NetworkConfig(
        classes=("ground", "disk"), encoder="blocks", channels=(8, 12, 16), pyramid_bins=(1, 2), pyramid_channels=8
    )
    trained = PyramidSegmenter(config).train()
    optimizer = torch.optim.Adam(trained.parameters(), lr=0.01)
    for step in range(60):
        pairs = [disks(10 * step + number) for number in range(2)]
        batch = torch.cat([to_batch(image, torch.device("cpu")) for image, _ in pairs])
        masks = torch.tensor(np.stack([mask for _, mask in pairs])).long()
        optimizer.zero_grad()
        segmentation_loss(trained(batch), masks).backward()
        optimizer.step()
    return trained.eval()


def pictures(**look: Any) -> list[Image]:
    return [disks(1000 + seed, **look)[0] for seed in range(4)]


def test_lab_with_the_source_scale_has_zoom_1(network: Any) -> None:
    assert estimate_domain_shift(network, pictures(), pictures(), search_scale=True).zoom == 1.0


@pytest.mark.parametrize(("radius", "low", "high"), [(12, 0.39, 0.7), (3, 1.5, 2.6)])
def test_estimates_another_scale(network: Any, radius: float, low: float, high: float) -> None:
    found = estimate_domain_shift(network, pictures(), pictures(radius=radius, side=144), search_scale=True).zoom
    assert low <= found <= high


def test_known_scale_is_not_searched(network: Any) -> None:
    shift = estimate_domain_shift(network, pictures(), pictures(radius=12), search_scale=False)
    assert shift.zoom == 1.0
    assert all(torch.equal(a, b) for a, b in zip(shift.statistics.means, shift.zoomed_statistics.means, strict=True))


def test_network_is_not_changed(network: Any) -> None:
    before = read_statistics(network)
    estimate_domain_shift(network, pictures(), pictures(dark=150), search_scale=True)
    after = read_statistics(network)
    assert all(torch.equal(a, b) for a, b in zip(before.means, after.means, strict=True))
    assert not network.training


def test_predictions_at_another_scale_have_the_size_of_the_image(network: Any) -> None:
    probabilities = predict_at(network, torch.rand(1, 3, 30, 50), 0.5)
    assert probabilities.shape == (1, 2, 30, 50)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(1, 30, 50))


def test_images_slightly_larger_than_the_stride_have_statistics(network: Any) -> None:
    """At half their size the deepest features of such an image would be a single pixel."""
    small = pictures(side=network.stride + 1)
    shift = estimate_domain_shift(network, pictures(), small, search_scale=True)
    assert shift.zoom >= 1.0
    assert all(torch.isfinite(variance).all() for variance in shift.statistics.variances)


def test_small_image_does_not_prevent_the_scale_search(network: Any) -> None:
    lab = pictures(radius=12, side=144)
    small = disks(7, side=network.stride + 1)[0]
    found = estimate_domain_shift(network, pictures(), [*lab, small], search_scale=True).zoom
    assert found == estimate_domain_shift(network, pictures(), lab, search_scale=True).zoom < 1.0


def smear(seed: int) -> Image:
    """One or two dark disks, each in a larger pale one, on an empty ground."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:96, :96]
    image = np.full((96, 96), 225.0)
    for _ in range(rng.integers(1, 3)):
        top, left = rng.uniform(20, 76, 2)
        far = np.hypot(y - top, x - left)
        image = np.where(far < 20, np.minimum(image, 165), image)
        image = np.where(far < 6, 90, image)
    return np.clip(image[..., None] + rng.normal(0, 6, (96, 96, 3)), 0, 255).astype(np.uint8)


def test_statistics_of_a_lab_with_the_source_balance_are_used(network: Any) -> None:
    assert estimate_domain_shift(network, pictures(), pictures(light=180, dark=100), search_scale=False).share == 0.5


def test_statistics_of_a_lab_with_few_objects_are_not_used(network: Any) -> None:
    lab = [smear(seed) for seed in range(6)]
    assert estimate_domain_shift(network, pictures(), lab, search_scale=False).share == 0


def test_statistics_of_a_lab_without_objects_are_not_used(network: Any) -> None:
    rng = np.random.default_rng(0)
    lab = [np.clip(rng.normal(200, 12, (96, 96, 3)), 0, 255).astype(np.uint8) for _ in range(4)]
    assert estimate_domain_shift(network, pictures(), lab, search_scale=False).share == 0


def predicted(pixels: int, consistency: float, confidence: float) -> ViewPredictions:
    """The first pixels of 100 as foreground; the network is sure of the last 50."""
    ramp = torch.arange(100)[None]
    return ViewPredictions(((ramp < pixels).long(),), (ramp >= 50,), consistency, confidence)


@pytest.mark.parametrize(
    ("mixed", "share"),
    [
        (predicted(30, 0.90, 0.80), 0.5),
        (predicted(30, 0.85, 0.80), 0.5),
        (predicted(30, 0.84, 0.80), 0.0),
        (predicted(30, 0.95, 0.79), 0.0),
        (predicted(51, 0.90, 0.80), 0.5),  # 1 of 51 pixels was surely background
        (predicted(60, 0.90, 0.80), 0.0),
        (predicted(14, 0.90, 0.80), 0.0),
        (predicted(0, float("nan"), float("nan")), 0.0),
    ],
)
def test_statistics_are_used_unless_predictions_get_worse(
    mixed: ViewPredictions, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = iter((predicted(30, 0.90, 0.80), mixed))
    monkeypatch.setattr(domain_shift, "predict_views", lambda *_: next(both))
    monkeypatch.setattr(domain_shift, "mixed_network", lambda *_: None)
    assert domain_shift._usable_share(None, [], None) == share  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("distances", "scale"),
    [
        ({0.5: 0.9, 1.0: 1.0, 2.0: 0.8}, 1.0),
        ({0.5: 0.2, 1.0: 1.0, 2.0: 1.5}, 0.5),
        ({0.4: 0.2, 0.5: 0.25, 1.0: 1.0}, 0.5),
        ({1.0: 0.1, 2.0: 0.1}, 1.0),
    ],
)
def test_scale_is_used_only_if_clearly_closer(distances: dict[float, float], scale: float) -> None:
    assert modest_scale(distances) == scale
