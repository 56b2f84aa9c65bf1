"""Adaptation without source images, where these may not leave their hospital: from model and target images alone.

Batch-norm statistics, pseudo-labels in rounds and color jitter are those of `dual_adaptive`. What is learned from
source images there is unknown here: region rules, whether color predicts the classes, the source's colors, the lab's
scale. Source crops keep the source labs segmented there; here an anchor does, which holds the weights near their first
values.
"""

from collections.abc import Sequence
from typing import Any

import torch

from microseg.config.training_params import AdaptSettings
from microseg.datasets.sampling import Crops, Sample, step_generator
from microseg.models.network import PyramidSegmenter
from microseg.training.adaptation.domain_shift import TargetLab
from microseg.training.adaptation.method import AdaptationMethod
from microseg.training.adaptation.self_training import SelfTraining
from microseg.training.color_augmentation import draw_jitter
from microseg.training.method import DrawnCrops, Losses, instance_losses

__all__ = ["SourceFree", "SourceFreeMethod"]

_ANCHOR = 0.1  # weight of half the squared distance to the initial weights


class SourceFreeMethod(AdaptationMethod):
    """Base class of methods that train on target crops alone; source images are not kept, even where some are given.

    Attributes:
        target: Sampler of target crops, without masks.
    """

    needs_source = False

    def __init__(
        self,
        network: PyramidSegmenter,
        source: Sequence[Sample],  # noqa: ARG002 (not used)
        targets: Sequence[TargetLab],
        settings: AdaptSettings,
        **options: Any,
    ) -> None:
        super().__init__(network, (), targets, settings, **options)
        self.target = self.sampler([Sample(it) for lab in targets for it in lab.windows], seed=self.seed + 1)

    def batch(self, step: int, *, rank: int, world: int) -> DrawnCrops:
        """Target crops, and the random numbers of their color jitter."""
        crops = self.target.draw_bytes(step, rank=rank, world=world)
        generator = step_generator(self.seed, step, rank)
        return DrawnCrops(crops, draw_jitter(len(crops.images), self.settings.target_color_jitter, generator))

    def augment(self, batch: Any, step: int, *, rank: int) -> Any:
        """Target crops with color jitter; batches of another kind, of subclasses, as they are."""
        if not isinstance(batch, DrawnCrops):
            return batch
        return batch.changed(step_generator(self.seed, step, rank, device=batch.crops.images.device))


class SourceFree(SelfTraining, SourceFreeMethod):
    """Self-training on target crops, anchored to the network in use; named ``source_free``.

    Of the settings it uses ``normalization``, ``pseudo_label_rounds`` and ``target_color_jitter``.

    Reference:
        Li et al., "Explicit inductive bias for transfer learning with convolutional networks", ICML 2018 (the anchor,
        L2-SP).
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.prepare_rounds()

    def forward(self, batch: Crops, progress: float) -> Losses:  # noqa: ARG002 (the same at every step)
        """Cross entropy to the pseudo-labels, and the distance to the initial weights."""
        assert batch.masks is not None
        prediction = self.network(batch.images)
        loss = self.network.head.loss(prediction, batch.masks, 0.0)
        for instances in instance_losses(self.network, prediction, batch).values():
            loss = loss + instances
        moved = torch._foreach_sub(list(self.network.parameters()), list(self._base[0].parameters()))
        anchor = _ANCHOR / 2 * torch.stack(torch._foreach_norm(moved)).square().sum()
        return {"total": loss + anchor, "pseudo_labels": loss.detach(), "anchor": anchor.detach()}
