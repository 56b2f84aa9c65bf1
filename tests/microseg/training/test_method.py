from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from microseg.training.method import moving_average
from microseg.training.supervised import Supervised


def test_moving_average_by_hand() -> None:
    average, current = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    with torch.no_grad():
        average.weight.copy_(torch.tensor([1.0, 2.0]))
        current.weight.copy_(torch.tensor([3.0, -2.0]))
        assert average.running_var is not None
        assert current.running_var is not None
        assert current.num_batches_tracked is not None
        average.running_var.copy_(torch.tensor([10.0, 20.0]))
        current.running_var.copy_(torch.tensor([20.0, 0.0]))
        current.num_batches_tracked.fill_(5)
    moving_average(average, current, 0.9)
    torch.testing.assert_close(average.weight.detach(), torch.tensor([1.2, 1.6]))  # 0.9·1 + 0.1·3, 0.9·2 − 0.1·2
    torch.testing.assert_close(average.running_var, torch.tensor([11.0, 18.0]))
    assert average.num_batches_tracked == 5
    torch.testing.assert_close(current.weight.detach(), torch.tensor([3.0, -2.0]))


@pytest.mark.parametrize(("step", "decay"), [(0, 0.1), (8, 0.5), (10_000, 0.98)])
def test_the_average_follows_quickly_at_first(supervised: Callable[..., Supervised], step: int, decay: float) -> None:
    method = supervised(ema_decay=0.98)
    assert method.averaged is not None
    with torch.no_grad():
        method.averaged.head.bias.fill_(0.0)
        method.network.head.bias.fill_(1.0)
    method.after_step(step)
    torch.testing.assert_close(method.averaged.head.bias.detach(), torch.full((2,), 1 - decay))


def test_result_is_the_average_where_one_is_kept(supervised: Callable[..., Supervised]) -> None:
    averaged, plain = supervised(ema_decay=0.9), supervised(ema_decay=0)
    assert averaged.result() is averaged.averaged
    assert plain.averaged is None
    assert plain.result() is plain.network
    plain.after_step(0)


def test_a_network_that_another_training_gave_out_can_be_trained(
    supervised: Callable[..., Supervised], source: Any
) -> None:
    frozen = supervised(ema_decay=0.9).result()
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    method = Supervised(frozen, source, supervised().settings)
    method(method.batch(0, rank=0, world=1), 0)["total"].backward()
    assert all(parameter.grad is not None for parameter in method.network.parameters())
