"""Degradations of a network, against independent computations."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.evidence.degradation import (
    add_weight_noise,
    interpolate,
    random_network,
    shift_logit,
    with_statistics_of_images,
)
from microseg.errors import ModelError

Make = Callable[..., Any]


def logits_of(network: Any) -> torch.Tensor:
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits: torch.Tensor = network.eval()(images)
    return logits


def test_shift_of_one_logit(tiny_network: Make) -> None:
    network = tiny_network()
    before = logits_of(network)
    shift = torch.tensor([0.0, 2.0])[None, :, None, None].expand_as(before)
    torch.testing.assert_close(logits_of(shift_logit(network, 1, 2.0)) - before, shift)
    assert (logits_of(shift_logit(network, 1, 20.0)).argmax(1) == 1).all()
    torch.testing.assert_close(logits_of(network), before)


def test_interpolation_of_two_networks(tiny_network: Make) -> None:
    first, second = tiny_network(0), tiny_network(1)
    torch.testing.assert_close(logits_of(interpolate(first, second, 0.0)), logits_of(first))
    torch.testing.assert_close(logits_of(interpolate(first, second, 1.0)), logits_of(second))
    weights = [network.head.classify.weight for network in (first, second, interpolate(first, second, 1.5))]
    torch.testing.assert_close(weights[2], 1.5 * weights[1] - 0.5 * weights[0])


def test_extrapolated_variances_stay_positive(tiny_network: Make) -> None:
    first, second = tiny_network(0), tiny_network(1)
    for name, buffer in second.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(0.1)
    beyond = interpolate(first, second, 2.5)
    assert all((buffer > 0).all() for name, buffer in beyond.named_buffers() if name.endswith("running_var"))
    assert logits_of(beyond).isfinite().all()


def test_rejects_interpolation_of_two_architectures(tiny_network: Make) -> None:
    with pytest.raises(ModelError, match="one architecture"):
        interpolate(tiny_network(), tiny_network(channels=(4, 4)), 0.5)


def test_noise_has_the_requested_amount_and_is_deterministic(tiny_network: Make) -> None:
    network = tiny_network()
    before = logits_of(network)
    changed = add_weight_noise(network, 0.1, seed=3)
    torch.testing.assert_close(logits_of(changed), logits_of(add_weight_noise(network, 0.1, seed=3)))
    torch.testing.assert_close(logits_of(network), before)
    old = torch.cat([weights.flatten() / weights.std() for weights in network.parameters() if weights.ndim > 1])
    pairs = zip(network.parameters(), changed.parameters(), strict=True)
    moved = torch.cat([((b - a) / a.std()).flatten() for a, b in pairs if a.ndim > 1])
    assert len(moved) == len(old)
    assert float(moved.detach().std()) == pytest.approx(0.1, rel=0.1)


def test_random_network_keeps_the_global_random_state(tiny_config: Make) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (random_network(tiny_config(), seed) for seed in (0, 0, 1))
    torch.testing.assert_close(torch.rand(1), expected)
    torch.testing.assert_close(logits_of(one), logits_of(same))
    assert not torch.allclose(logits_of(one), logits_of(other))


def test_statistics_of_other_images(tiny_network: Make) -> None:
    network = tiny_network()
    images = [np.full((32, 32, 3), value, np.uint8) for value in (40, 200)]
    changed = with_statistics_of_images(network, images)
    names = [name for name, _ in network.named_buffers() if name.endswith("running_mean")]
    assert not torch.equal(changed.get_buffer(names[0]), network.get_buffer(names[0]))
    torch.testing.assert_close(dict(changed.named_parameters()), dict(network.named_parameters()))
