from collections.abc import Callable

import pytest
import torch

from microseg.config.params import TrainSettings
from microseg.datasets.sampling import CropSampler
from microseg.errors import TrainingError
from microseg.training.losses.segmentation import segmentation_loss
from microseg.training.supervised import Supervised

Make = Callable[..., Supervised]


def test_loss_is_the_segmentation_loss_of_the_batch(supervised: Make) -> None:
    method, twin = supervised(dice_weight=0.7), supervised(dice_weight=0.7)
    batch = method.batch(2, rank=0, world=1)
    losses = method(batch, 2)
    assert batch.masks is not None
    expected = segmentation_loss(twin.network(batch.images), batch.masks, alpha=0.7)
    torch.testing.assert_close(losses["total"], expected)
    assert losses.keys() == {"total", "segmentation"}
    assert not losses["segmentation"].requires_grad


def test_batches_are_a_function_of_the_step(supervised: Make, source: CropSampler) -> None:
    one, other = supervised(source_color_jitter=0.5), supervised(seed=9, source_color_jitter=0.5)
    assert torch.equal(one.batch(4, rank=0, world=1).images, other.batch(4, rank=0, world=1).images)
    assert not torch.equal(one.batch(4, rank=0, world=1).images, one.batch(5, rank=0, world=1).images)
    plain, drawn = supervised(source_color_jitter=0.0).batch(4, rank=0, world=1), source.draw(4)
    assert torch.equal(plain.images, drawn.images)
    changed = one.batch(4, rank=0, world=1)
    assert changed.masks is not None
    assert drawn.masks is not None
    assert torch.equal(changed.masks, drawn.masks)
    assert not torch.equal(changed.images, drawn.images)


def test_processes_change_their_colors_each_by_itself(supervised: Make, source: CropSampler) -> None:
    method = supervised(source_color_jitter=0.5)
    for rank in (0, 1):
        mine = method.batch(0, rank=rank, world=2)
        drawn = source.draw(0, rank=rank, world=2)
        assert len(mine.images) == 1
        assert mine.masks is not None
        assert drawn.masks is not None
        assert torch.equal(mine.masks, drawn.masks)


def test_a_few_steps_lower_the_loss(supervised: Make) -> None:
    method = supervised(ema_decay=0, learning_rate=0.02)
    batch = method.batch(0, rank=0, world=1)
    optimizer = torch.optim.Adam(method.parameter_groups())
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        total = method(batch, 0)["total"]
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_refuses_images_without_masks(source: CropSampler, supervised: Make) -> None:
    with pytest.raises(TrainingError, match=r"Expected a mask for every image.*manifest\.csv"):
        Supervised(supervised().network, source.unlabelled(), TrainSettings())
