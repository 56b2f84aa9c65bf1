import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from benchmarks.adaptation.alternatives.mean_teacher import (
    MaskedConsistency,
    MeanTeacher,
    class_mix,
    mask_patches,
)
from microseg.errors import TrainingError
from microseg.training.adaptation.normalization import read_statistics

Make = Callable[..., Any]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_half_of_the_classes_are_pasted_and_no_ignored_pixel() -> None:
    mask = torch.tensor([[[0, 0, 1, 2], [2, 3, 3, 255]]])
    seen = set()
    for seed in range(30):
        pasted = class_mix(mask, generator(seed))
        classes = mask[pasted].unique()
        assert len(classes) == 2
        assert torch.equal(pasted, torch.isin(mask, classes))
        seen.add(tuple(classes.tolist()))
    assert len(seen) == 6  # all pairs of the four classes
    assert not class_mix(torch.full((1, 2, 2), 255), generator()).any()


def test_seven_of_ten_patches_are_masked() -> None:
    images = torch.ones(20, 3, 64, 64)
    masked = mask_patches(images, generator())
    patches = masked.reshape(20, 3, 8, 8, 8, 8).transpose(3, 4)
    assert torch.equal(patches.amin((4, 5)), patches.amax((4, 5)))  # whole patches
    assert 0.25 < float(masked.mean()) < 0.35


def test_loss_by_hand(make: Make) -> None:
    """Pixels of the source count fully, pixels of the target by the teacher's share of confident pixels."""
    method = make(MeanTeacher, target_color_jitter=0.7)
    batch = method.inputs(0)
    labels, confidence = method.pseudo_labels(batch.target)
    method.pseudo_labels = lambda _target: (labels, torch.tensor(0.25))
    losses = method.train()(batch, 0.5)
    logits = copy.deepcopy(method.network)(batch.mixed)
    expected = []
    for image in range(2):
        target = torch.where(batch.pasted[image], batch.source.masks[image], labels[image])
        entropy = functional.cross_entropy(logits[[image]], target[None], reduction="none")[0]
        expected.append((entropy * (0.25 + 0.75 * batch.pasted[image])).mean())
    assert float(losses["mixed"]) == pytest.approx(float(sum(expected).detach() / 2), rel=1e-4)
    assert 0 <= float(confidence) <= 1
    assert losses.keys() == {"total", "segmentation", "mixed"}


def test_teacher_keeps_its_statistics_and_follows_the_student(make: Make) -> None:
    method = make(MeanTeacher).train()
    before, weights = read_statistics(method.result()), [it.clone() for it in method.result().parameters()]
    method(method.inputs(0), 0.0)
    for one, other in zip(before.means, read_statistics(method.result()).means, strict=True):
        assert torch.equal(one, other)
    with torch.no_grad():
        for parameter in method.network.parameters():
            parameter += 1
    method.after_step(0)
    for old, new in zip(weights, method.result().parameters(), strict=True):
        np.testing.assert_allclose(new - old, 0.9, rtol=1e-3)


@pytest.mark.parametrize("kind", [MeanTeacher, MaskedConsistency])
def test_steps_lower_the_loss(make: Make, descend: Callable[..., Any], kind: type) -> None:
    before, after = descend(make(kind, target_color_jitter=0.7))
    assert after < before


def test_masked_consistency_adds_a_loss(make: Make) -> None:
    method = make(MaskedConsistency).train()
    assert method(method.inputs(0), 0.0).keys() == {"total", "segmentation", "mixed", "masked"}


def test_teacher_is_required(make: Make) -> None:
    with pytest.raises(TrainingError, match="ema_decay above 0"):
        make(MeanTeacher, ema_decay=0.0)
