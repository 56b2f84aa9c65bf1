from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from microseg.config.training_params import TrainSettings
from microseg.datasets.sampling import CropSampler
from microseg.errors import TrainingError
from microseg.models.losses import segmentation_loss
from microseg.training.method import Supervised

Make = Callable[..., Supervised]


def test_ema_by_hand(supervised: Callable[..., Supervised]) -> None:
    """Weights and batch-norm statistics are averaged, counters are copied; the network is not changed."""
    method = supervised(ema_decay=0.9)
    assert method.averaged is not None

    def layer(network: nn.Module) -> nn.BatchNorm2d:
        return next(it for it in network.modules() if isinstance(it, nn.BatchNorm2d))

    average, current = layer(method.averaged), layer(method.network)
    with torch.no_grad():
        average.weight.copy_(torch.tensor([1.0, 2.0, 0.0, 0.0]))
        current.weight.copy_(torch.tensor([3.0, -2.0, 0.0, 0.0]))
        average.running_var.copy_(torch.tensor([10.0, 20.0, 1.0, 1.0]))  # type: ignore[union-attr]
        current.running_var.copy_(torch.tensor([20.0, 0.0, 1.0, 1.0]))  # type: ignore[union-attr]
        current.num_batches_tracked.fill_(5)  # type: ignore[union-attr]
    method.after_step(1000)
    # 0.9·1 + 0.1·3, 0.9·2 − 0.1·2
    torch.testing.assert_close(average.weight.detach(), torch.tensor([1.2, 1.6, 0.0, 0.0]))
    torch.testing.assert_close(average.running_var, torch.tensor([11.0, 18.0, 1.0, 1.0]))
    assert average.num_batches_tracked == 5
    torch.testing.assert_close(current.weight.detach(), torch.tensor([3.0, -2.0, 0.0, 0.0]))


@pytest.mark.parametrize(("step", "decay"), [(0, 0.1), (8, 0.5), (10_000, 0.98)])
def test_ema_follows_quickly_at_first(supervised: Callable[..., Supervised], step: int, decay: float) -> None:
    method = supervised(ema_decay=0.98)
    assert method.averaged is not None
    with torch.no_grad():
        method.averaged.head.classify.bias.fill_(0.0)
        method.network.head.classify.bias.fill_(1.0)
    method.after_step(step)
    torch.testing.assert_close(method.averaged.head.classify.bias.detach(), torch.full((2,), 1 - decay))


def test_result_is_the_ema_if_enabled(supervised: Callable[..., Supervised]) -> None:
    averaged, plain = supervised(ema_decay=0.9), supervised(ema_decay=0)
    assert averaged.averaged is not None
    assert averaged.result() is averaged.averaged
    assert plain.averaged is None
    assert plain.result() is plain.network
    plain.after_step(0)


def test_ema_of_another_training_can_be_trained(supervised: Callable[..., Supervised], source: Any) -> None:
    frozen = supervised(ema_decay=0.9).result()
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    method = Supervised(frozen, source, supervised().settings)
    method(method.inputs(0), 0)["total"].backward()
    assert all(parameter.grad is not None for parameter in method.network.parameters())


def test_loss_is_the_segmentation_loss_of_the_batch(supervised: Make) -> None:
    method, twin = supervised(dice_weight=0.7), supervised(dice_weight=0.7)
    batch = method.inputs(2)
    losses = method(batch, 2)
    assert batch.masks is not None
    expected = segmentation_loss(twin.network(batch.images), batch.masks, dice_weight=0.7)
    torch.testing.assert_close(losses["total"], expected)
    assert losses.keys() == {"total", "segmentation"}
    assert not losses["segmentation"].requires_grad


def test_batches_are_a_function_of_the_step(supervised: Make, source: CropSampler) -> None:
    one, other = supervised(source_color_jitter=0.5), supervised(seed=9, source_color_jitter=0.5)
    assert torch.equal(one.inputs(4).images, other.inputs(4).images)
    assert not torch.equal(one.inputs(4).images, one.inputs(5).images)
    plain, drawn = supervised(source_color_jitter=0.0).inputs(4), source.draw(4)
    assert torch.equal(plain.images, drawn.images)
    changed = one.inputs(4)
    assert changed.masks is not None
    assert drawn.masks is not None
    assert torch.equal(changed.masks, drawn.masks)
    assert not torch.equal(changed.images, drawn.images)


def test_processes_draw_separate_crops_and_colors(supervised: Make, source: CropSampler) -> None:
    method = supervised(source_color_jitter=0.5)
    for rank in (0, 1):
        mine = method.inputs(0, rank=rank, world=2)
        drawn = source.draw(0, rank=rank, world=2)
        assert len(mine.images) == 1
        assert mine.masks is not None
        assert drawn.masks is not None
        assert torch.equal(mine.masks, drawn.masks)


def test_supervised_steps_lower_the_loss(supervised: Make) -> None:
    method = supervised(ema_decay=0, learning_rate=0.02)
    batch = method.inputs(0)
    optimizer = torch.optim.Adam(method.parameter_groups())
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        total = method(batch, 0)["total"]
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_supervised_training_requires_masks(source: CropSampler, supervised: Make) -> None:
    with pytest.raises(TrainingError, match=r"Expected a mask for every image.*manifest\.csv"):
        Supervised(supervised().network, source.unlabelled(), TrainSettings())
