"""Each way of making a network bad, against an independent word of it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.evidence.spoiling import between, noisy, tilted, untrained, with_statistics_of
from microseg.errors import ModelError

Make = Callable[..., Any]


def see(network: Any) -> torch.Tensor:
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits: torch.Tensor = network.eval()(images)
    return logits


def test_tilting_adds_to_one_logit(tiny_network: Make) -> None:
    network = tiny_network()
    before = see(network)
    torch.testing.assert_close(see(tilted(network, 1, 2.0)) - before, torch.tensor([0.0, 2.0])[None, :, None, None]
                               .expand_as(before))  # fmt: skip
    assert (see(tilted(network, 1, 20.0)).argmax(1) == 1).all()
    torch.testing.assert_close(see(network), before)


def test_the_line_between_two_networks(tiny_network: Make) -> None:
    first, second = tiny_network(0), tiny_network(1)
    torch.testing.assert_close(see(between(first, second, 0.0)), see(first))
    torch.testing.assert_close(see(between(first, second, 1.0)), see(second))
    weights = [network.head.classify.weight for network in (first, second, between(first, second, 1.5))]
    torch.testing.assert_close(weights[2], 1.5 * weights[1] - 0.5 * weights[0])


def test_beyond_the_second_variances_stay_positive(tiny_network: Make) -> None:
    first, second = tiny_network(0), tiny_network(1)
    for name, buffer in second.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(0.1)
    beyond = between(first, second, 2.5)
    assert all((buffer > 0).all() for name, buffer in beyond.named_buffers() if name.endswith("running_var"))
    assert see(beyond).isfinite().all()


def test_no_line_between_two_architectures(tiny_network: Make) -> None:
    with pytest.raises(ModelError, match="one architecture"):
        between(tiny_network(), tiny_network(channels=(4, 4)), 0.5)


def test_noise_is_of_the_size_asked_and_the_same_each_time(tiny_network: Make) -> None:
    network = tiny_network()
    before = see(network)
    changed = noisy(network, 0.1, seed=3)
    torch.testing.assert_close(see(changed), see(noisy(network, 0.1, seed=3)))
    torch.testing.assert_close(see(network), before)
    old = torch.cat([weights.flatten() / weights.std() for weights in network.parameters() if weights.ndim > 1])
    pairs = zip(network.parameters(), changed.parameters(), strict=True)
    moved = torch.cat([((b - a) / a.std()).flatten() for a, b in pairs if a.ndim > 1])
    assert len(moved) == len(old)
    assert float(moved.detach().std()) == pytest.approx(0.1, rel=0.1)


def test_an_untrained_network_leaves_the_randomness_of_others(tiny_config: Make) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (untrained(tiny_config(), seed) for seed in (0, 0, 1))
    torch.testing.assert_close(torch.rand(1), expected)
    torch.testing.assert_close(see(one), see(same))
    assert not torch.allclose(see(one), see(other))


def test_statistics_are_those_of_the_images(tiny_network: Make) -> None:
    network = tiny_network()
    images = [np.full((32, 32, 3), value, np.uint8) for value in (40, 200)]
    changed = with_statistics_of(network, images)
    names = [name for name, _ in network.named_buffers() if name.endswith("running_mean")]
    assert not torch.equal(changed.get_buffer(names[0]), network.get_buffer(names[0]))
    torch.testing.assert_close(dict(changed.named_parameters()), dict(network.named_parameters()))
