import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from microseg.model import NetworkConfig, PyramidSegmenter
from microseg.training.frozen import FrozenNorms
from tests.microseg.model.test_folding import TakenTwice, norms, with_statistics


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of batch normalisation over a map: its channels."""
    seen: list[int] = []
    batch_norm = functional.batch_norm

    def watched(x: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        seen.append(x.shape[1])
        return batch_norm(x, *rest, **options)

    monkeypatch.setattr(functional, "batch_norm", watched)
    return seen


@pytest.mark.parametrize("encoder", ["blocks", "resnet18", "tf_efficientnet_lite0"])
def test_answer_and_gradients_are_those_of_the_layers(encoder: str, passes: list[int]) -> None:
    config = NetworkConfig(classes=("background", "gland"), encoder=encoder, filters=(8, 16), pyramid_filters=16)
    network = with_statistics(PyramidSegmenter(config), 64).double()
    plain, frozen, x = copy.deepcopy(network), FrozenNorms(network), torch.rand(2, 3, 96, 64, dtype=torch.double)
    passes.clear()
    with frozen.folded():
        given = network(x)
    assert passes == []
    expected = plain(x)
    assert len(frozen) == len(passes) == norms(network) > 0
    torch.testing.assert_close(given, expected)
    for logits in (given, expected):
        logits.square().sum().backward()
    for (name, own), other in zip(network.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1, eps=0.0)).eval()
    values = {"0.weight": 2.0, "0.bias": 1.0, "1.running_mean": 3.0, "1.running_var": 4.0, "1.weight": 5.0, "1.bias": 7}
    with torch.no_grad():
        for name, value in values.items():
            network.state_dict()[name].fill_(value)
    with FrozenNorms(network).folded():
        convolution = network[0]
        assert isinstance(convolution, nn.Conv2d)
        assert convolution.weight.flatten().tolist() == [5.0] * 3  # 2 · 5 / √4
        assert convolution.bias is not None
        assert convolution.bias.item() == 2.0  # 7 + (1 − 3) · 5 / 2


@pytest.mark.parametrize("fails", [False, True])
def test_afterwards_the_network_is_as_before(fails: bool) -> None:
    config = NetworkConfig(classes=("a", "b"), encoder="tf_efficientnet_lite0", pyramid_filters=16)
    network = with_statistics(PyramidSegmenter(config), 64).train()
    parameters, modes = dict(network.named_parameters()), [part.training for part in network.modules()]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    frozen = FrozenNorms(network)
    try:
        with frozen.folded():
            network.eval()(torch.rand(1, 3, 64, 64) if not fails else torch.rand(1, 1, 64, 64))
    except Exception:
        assert fails
    network.train()
    assert all(parameter is parameters[name] for name, parameter in network.named_parameters())
    assert [part.training for part in network.modules()] == modes
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_copy_computes_with_its_own_weights(passes: list[int]) -> None:
    config = NetworkConfig(classes=("a", "b"), encoder="blocks", filters=(4, 8))
    network = with_statistics(PyramidSegmenter(config), 32).double()
    own, (copied, frozen) = FrozenNorms(network), copy.deepcopy((network, FrozenNorms(network)))
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(1.5)
    x = torch.rand(1, 3, 32, 32, dtype=torch.double)
    expected = copied(x)
    passes.clear()
    with frozen.folded(), torch.no_grad():
        torch.testing.assert_close(copied(x), expected)
    assert passes == []
    with own.folded(), torch.no_grad():
        assert not torch.allclose(network(x), expected)


def test_a_network_that_this_would_change_stays_as_it_is(passes: list[int]) -> None:
    network = with_statistics(TakenTwice(), 16)
    frozen, x = FrozenNorms(network), torch.rand(1, 3, 8, 8)
    assert len(frozen) == 0
    passes.clear()
    with frozen.folded():
        network(x)
    assert passes == [4]
