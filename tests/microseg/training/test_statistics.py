from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from microseg.errors import TrainingError
from microseg.training import estimate_statistics


def batches(count: int, *, level: float = 0.0, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [level + torch.rand(2, 3, 5, 4, generator=generator) for _ in range(count)]


def test_against_numpy() -> None:
    layer, images = nn.BatchNorm2d(3), batches(4)
    layer(torch.rand(2, 3, 5, 4) + 9)  # what it knew before, which must not count
    assert layer.num_batches_tracked == 1
    estimate_statistics(nn.Sequential(layer), images)
    arrays = [image.numpy().transpose(1, 0, 2, 3).reshape(3, -1) for image in images]
    assert layer.running_mean is not None
    assert layer.running_var is not None
    np.testing.assert_allclose(layer.running_mean, np.mean([a.mean(1) for a in arrays], 0), rtol=1e-5)
    np.testing.assert_allclose(layer.running_var, np.mean([a.var(1, ddof=1) for a in arrays], 0), rtol=1e-5)


def test_several_labs_count_alike() -> None:
    layer = nn.BatchNorm2d(3)
    estimate_statistics(nn.Sequential(layer), [*batches(3, level=0.0), *batches(3, level=10.0, seed=1)])
    assert layer.running_mean is not None
    assert layer.running_var is not None
    np.testing.assert_allclose(layer.running_mean, 5.5, atol=0.1)  # between the means 0.5 and 10.5
    assert float(layer.running_var.max()) < 0.2  # that within a lab, 1/12; not that between the labs, 25


def test_a_deeper_layer_sees_what_the_new_statistics_of_the_one_before_make() -> None:
    first, second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    first.running_mean += 100.0  # type: ignore[operator]
    estimate_statistics(nn.Sequential(first, second), batches(2))
    assert second.running_mean is not None
    np.testing.assert_allclose(second.running_mean, 0.0, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_only_statistics_change(tiny_network: Callable[..., Any], training: bool) -> None:
    network = tiny_network().train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    momenta = [layer.momentum for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    estimate_statistics(network, [torch.rand(2, 3, 16, 16) for _ in range(2)])
    assert all(part.training == training for part in network.modules())
    assert [layer.momentum for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)] == momenta
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) != ("running" in name or "tracked" in name), name
    assert not any(parameter.grad is not None for parameter in network.parameters())


def test_refuses_no_batches() -> None:
    with pytest.raises(TrainingError, match=r"at least one batch.*give more images"):
        estimate_statistics(nn.Sequential(nn.BatchNorm2d(3)), [])
    estimate_statistics(nn.Sequential(nn.ReLU()), [])  # nothing to estimate
