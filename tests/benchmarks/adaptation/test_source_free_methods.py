"""Methods that must not see source images."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.adaptation.alternatives.fourier_style_mining import (
    FourierStyleMining,
    compactness,
    mine_styles,
    statistics_gap,
)
from benchmarks.adaptation.alternatives.tent import Tent, entropy
from benchmarks.adaptation.alternatives.uncertain_pseudo_labels import UncertainPseudoLabels, image_dice
from benchmarks.adaptation.methods import METHODS
from microseg.models.files import load_network, save_network
from microseg.training.adaptation.method import AdaptationMethod
from microseg.training.adaptation.normalization import measure_statistics, write_statistics

Make = Callable[..., Any]

SOURCE_FREE = [name for name, method in METHODS.items() if method.changes.get("source") == "none"]
KINDS = [kind for name in SOURCE_FREE if isinstance(kind := METHODS[name].kind, type)]


@pytest.mark.parametrize("kind", KINDS)
def test_no_source_image_is_kept(make: Make, kind: type[AdaptationMethod]) -> None:
    """Even where some are given."""
    assert not kind.needs_source
    method = make(kind)
    names = {sample.image.name for value in vars(method).values() for sample in getattr(value, "samples", ())}
    assert names == {"2.png", "3.png"}  # of the target lab
    assert all(sample.mask is None for value in vars(method).values() for sample in getattr(value, "samples", ()))


@pytest.mark.parametrize("kind", KINDS)
def test_steps_lower_the_loss(make: Make, descend: Callable[..., Any], kind: type) -> None:
    before, after = descend(make(kind, source="none"))
    assert after < before


def test_tent_changes_only_affine_parameters(make: Make, descend: Callable[..., Any]) -> None:
    method = make(Tent, source="none")
    before = {name: value.clone() for name, value in method.network.named_parameters()}
    descend(method)
    layers = {name for name, layer in method.network.named_modules() if isinstance(layer, _BatchNorm)}
    changed = {name for name, value in method.network.named_parameters() if not torch.equal(value, before[name])}
    assert changed
    assert {name.rsplit(".", 1)[0] for name in changed} <= layers


def test_entropy_by_hand() -> None:
    probabilities = torch.tensor([[0.25, 0.5], [0.75, 0.5]]).reshape(1, 2, 1, 2)
    by_hand = [-(0.25 * np.log(0.25) + 0.75 * np.log(0.75)), np.log(2)]
    assert float(entropy(probabilities)) == pytest.approx(np.mean(by_hand))


def test_only_reliable_pixels_are_pseudo_labels(make: Make) -> None:
    """Decoders that are sure of class 1 on the left and of nothing on the right."""
    method = make(UncertainPseudoLabels, source="none").train()
    half = torch.zeros(2, 2, 32, 32)
    half[:, 1, :, :16], half[:, 0, :, :16], half[:, :, :, 16:] = 0.95, 0.05, 0.5
    method.predictions = lambda _images: [half] * 4
    losses = method(method.inputs(0), 0.0)
    left = 512
    assert float(losses["pseudo_labels"]) == pytest.approx(1 - 2 * 0.95 * left / (0.95 * left + left), rel=1e-4)
    certain, even = -(0.95 * np.log2(0.95) + 0.05 * np.log2(0.05)), 1.0
    assert float(losses["entropy"]) == pytest.approx((certain + even) / 2 / 2, rel=1e-3)


def test_decoders_predict_the_same_until_they_are_perturbed(make: Make) -> None:
    method = make(UncertainPseudoLabels, source="none")
    images = method.inputs(0).images
    uniform = images.mean((2, 3), keepdim=True).expand_as(images)  # the same from every side
    own, *others = method.eval().predictions(uniform)
    torch.testing.assert_close(own, method.network.head.probabilities(method.network(uniform)))
    for other in others:
        torch.testing.assert_close(other.mean(), own.mean())
    own, *others = method.train().predictions(uniform)
    assert not torch.allclose(own, others[0], atol=1e-4)


def test_copies_are_trained_and_dropped(make: Make, descend: Callable[..., Any], tmp_path: Path) -> None:
    method = make(UncertainPseudoLabels, source="none")
    before = copy.deepcopy(method.decoders)
    descend(method, steps=2)
    for old, new in zip(before.parameters(), method.decoders.parameters(), strict=True):
        assert not torch.equal(old, new)
    save_network(tmp_path / "network", method.result())
    images = method.inputs(0).images
    with torch.no_grad():
        torch.testing.assert_close(load_network(tmp_path / "network").eval()(images), method.result().eval()(images))


def test_image_dice_by_hand() -> None:
    foreground = torch.tensor([[[0.8, 0.4], [0.2, 0.6]], [[0.5, 0.5], [0.5, 0.5]]])
    labels = torch.tensor([[[1, 1], [0, 255]], [[255, 255], [255, 255]]])
    dice = image_dice(torch.stack([1 - foreground, foreground], 1), labels)
    by_hand = (2 * 1.2 / (1.4 + 2) + 2 * 0.8 / (1.6 + 1)) / 2
    np.testing.assert_allclose(dice, [by_hand, 1.0], rtol=1e-6)


def test_mining_brings_statistics_to_the_stored_ones(tiny_network: Callable[..., Any]) -> None:
    network = tiny_network().eval().requires_grad_(False)
    source = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.6
    write_statistics(network, measure_statistics(network, source.split(1)))
    crops = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 0.3 + 0.1
    mined = mine_styles(network, crops)
    assert float(statistics_gap(network, mined)[0]) < 0.7 * float(statistics_gap(network, crops)[0])
    assert 0 <= float(mined.min()) < float(mined.max()) <= 1


def test_source_like_crops_have_low_frequencies_of_a_style(make: Make) -> None:
    method = make(FourierStyleMining, source="none")
    source_like, target, turns = method.inputs(0)
    means = {round(float(style[0].mean()), 3) for style in method.styles}
    assert all(round(float(it[0].mean()), 3) in means for it in source_like)
    assert not torch.allclose(source_like, target, atol=1e-3)
    assert turns in (1, 2, 3)


def test_compactness_of_circle_line_and_nothing() -> None:
    y, x = np.mgrid[:64, :64]
    circle, line = (y - 32) ** 2 + (x - 32) ** 2 < 20**2, (y == 10) & (x < 40)
    masks = torch.from_numpy(np.stack([circle, line, circle & False, circle | line])).long()
    found = compactness(masks)
    assert found[0] == pytest.approx(1, abs=0.03)
    assert found[1] == pytest.approx(4 * np.pi * 40 / (np.pi / 4 * 82) ** 2)
    assert found[2] == 1
    assert found[3] == pytest.approx((float(found[0]) + float(found[1])) / 2, rel=0.05)
