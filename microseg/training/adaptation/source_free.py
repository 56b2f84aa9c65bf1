"""Adaptation without source images, where these may not leave their hospital: from model and target images alone.

Batch-norm statistics, pseudo-labels in rounds and color jitter are those of `dual_adaptive`. What is learned from
source images there is unknown here: region rules, whether color predicts the classes, the source's colors, the lab's
scale. Source crops keep the source labs segmented there; here an anchor does, which holds the weights near their first
values.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from microseg.config.params import AdaptSettings
from microseg.datasets.sampling import Crops, CropSampler, Sample, step_generator
from microseg.models.network import PyramidSegmenter
from microseg.training.adaptation.domain_shift import TargetLab
from microseg.training.adaptation.method import AdaptationMethod
from microseg.training.adaptation.self_training import SelfTraining
from microseg.training.color_augmentation import jitter_color
from microseg.training.method import Losses, instance_losses

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
        self._sampler = partial(CropSampler, size=self.crop_size, batch=self.crops_per_step, zoom=settings.zoom_range)
        self.target = self._sampler([Sample(it) for lab in targets for it in lab.windows], seed=self.seed + 1)

    def batch(self, step: int, *, rank: int, world: int) -> Crops:
        """Target crops with color jitter."""
        crops = self.target.draw(step, rank=rank, world=world)
        generator = step_generator(self.seed, step, rank)
        return crops._replace(images=jitter_color(crops.images, self.settings.target_color_jitter, generator))


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
        pairs = zip(self.network.parameters(), self._base[0].parameters(), strict=True)
        anchor = _ANCHOR / 2 * torch.stack([(weight - start).square().sum() for weight, start in pairs]).sum()
        return {"total": loss + anchor, "pseudo_labels": loss.detach(), "anchor": anchor.detach()}
