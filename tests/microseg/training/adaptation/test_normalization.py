from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from microseg.errors import TrainingError
from microseg.training.adaptation.normalization import (
    NormStatistics,
    freeze_statistics,
    measure_statistics,
    mix_statistics,
    read_statistics,
    statistics_distance,
    write_statistics,
)


def images(count: int, *, level: float = 0.0, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [level + torch.rand(1, 3, 5 + number, 4, generator=generator) for number in range(count)]


def test_measured_statistics_equal_numpy() -> None:
    layer, seen = nn.BatchNorm2d(3), images(4)
    layer(torch.rand(2, 3, 5, 4) + 9)  # earlier statistics, which must not count
    (mean,), (variance,) = measure_statistics(nn.Sequential(layer), seen)
    arrays = [image.numpy().transpose(1, 0, 2, 3).reshape(3, -1) for image in seen]
    means = np.array([a.mean(1) for a in arrays])
    np.testing.assert_allclose(mean, means.mean(0), rtol=1e-5)
    np.testing.assert_allclose(variance, np.mean([a.var(1, ddof=1) for a in arrays], 0) + means.var(0), rtol=1e-4)


def test_deeper_layers_get_images_normalized_by_their_statistics() -> None:
    first, second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    first.running_mean += 100.0  # type: ignore[operator]
    statistics = measure_statistics(nn.Sequential(first, second), images(2))
    np.testing.assert_allclose(statistics.means[1], 0.0, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_measuring_does_not_change_the_network(tiny_network: Callable[..., Any], training: bool) -> None:
    network = tiny_network().train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    measure_statistics(network, [torch.rand(1, 3, 32, 32)])
    assert network.training == training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_statistics_round_trip(tiny_network: Callable[..., Any]) -> None:
    network = tiny_network()
    wanted = measure_statistics(network, [torch.rand(1, 3, 32, 32)])
    write_statistics(network, wanted)
    got = read_statistics(network)
    for a, b in zip((*got.means, *got.variances), (*wanted.means, *wanted.variances), strict=True):
        assert torch.equal(a, b)


def test_mixture_equals_statistics_of_the_joined_values() -> None:
    """Three quarters of the values from one set, one quarter from the other: mean and variance of all together."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 2, (30_000, 2)), rng.normal(-3, 0.5, (10_000, 2))

    def of(values: np.ndarray) -> NormStatistics:
        return NormStatistics((torch.tensor(values.mean(0)),), (torch.tensor(values.var(0)),))

    (mean,), (variance,) = mix_statistics(of(a), of(b), 0.25)
    joined = np.concatenate([a, b])
    np.testing.assert_allclose(mean, joined.mean(0))
    np.testing.assert_allclose(variance, joined.var(0))
    assert torch.equal(mix_statistics(of(a), of(b), 0.0).means[0], of(a).means[0])


def test_distance_by_hand() -> None:
    def of(mean: float, variance: float) -> NormStatistics:
        layers = tuple(torch.full((2,), value) for value in (mean, variance) for _ in range(1))
        return NormStatistics((layers[0],) * 5, (layers[1],) * 5)

    assert statistics_distance(of(1, 4 - 1e-4), of(3, 100)) == pytest.approx(1.0)
    assert statistics_distance(of(1, 4), of(1, 9)) == 0
    assert statistics_distance(of(0, 0), of(9, 1)) == 20  # the contribution of one channel is limited


def test_first_layers_do_not_count_in_the_distance() -> None:
    def of(*means: float) -> NormStatistics:
        return NormStatistics(tuple(torch.tensor([it]) for it in means), (torch.ones(1),) * len(means))

    assert statistics_distance(of(0, 0, 0, 0, 0), of(5, 5, 0, 0, 0)) == 0
    assert statistics_distance(of(0, 0, 0, 0, 0), of(0, 0, 3, 0, 0)) == pytest.approx(3, rel=1e-3)


def test_frozen_statistics_are_used_and_not_updated() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout()).train()
    freeze_statistics(network)
    assert [part.training for part in network] == [False, True]
    before = read_statistics(network).means[0]
    network(torch.rand(2, 3, 4, 4) + 5)
    assert torch.equal(read_statistics(network).means[0], before)


def test_requires_images() -> None:
    with pytest.raises(TrainingError, match=r"at least one image.*give more images"):
        measure_statistics(nn.Sequential(nn.BatchNorm2d(3)), [])
