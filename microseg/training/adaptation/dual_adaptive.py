"""Adaptation to unlabelled labs: the dual-adaptive pyramid network and what is put around it.

One simultaneous min–max game (SPEC): the segmenter minimizes L_seg − λ_img·L_img − λ_feat·L_feat while the two domain
classifiers minimize L_img and L_feat. It is realized by gradient reversal (Ganin & Lempitsky 2015): one backward pass
and one optimizer for both players, with no alternation to balance, which is also what the source calls simultaneous.

Around it, each switchable: source crops in the target's colors and at its scale (their labels stay true),
normalization statistics that both labs share, and pseudo-labels of the target's windows in rounds.
"""

import copy
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from lightning_fabric import Fabric

from microseg.config.params import AdaptSettings
from microseg.datasets.sampling import Crops, CropSampler, Sample, step_generator
from microseg.errors import TrainingError
from microseg.models.domain_classifiers import FeatureDomainClassifier, ImageDomainClassifier
from microseg.models.gradient_reversal import reverse_gradient
from microseg.models.network import Features, PyramidSegmenter
from microseg.slides.images import read_image
from microseg.training.adaptation.normalization import (
    NormStatistics,
    freeze_statistics,
    mix_statistics,
    read_statistics,
    write_statistics,
)
from microseg.training.adaptation.pseudo_labels import TargetLab, pseudo_labelled_samples, write_pseudo_labels
from microseg.training.adaptation.source_priors import SourcePriors, estimate_source_priors, image_colors
from microseg.training.color_augmentation import jitter_color, transfer_color
from microseg.training.losses.domain import domain_loss
from microseg.training.losses.segmentation import segmentation_loss
from microseg.training.method import Losses, TrainingMethod

__all__ = ["AdaptationBatch", "DualAdaptive", "grl_strength"]

_SAME_SCALE = 1.1  # labs whose scales differ by less share their crops


class AdaptationBatch(NamedTuple):
    """Crops of both labs, their colors changed at random.

    Attributes:
        source: labelled crops, some of them in the target's colors or at its scale.
        target: the new lab's crops; their masks are pseudo-labels, None where there are none.
    """

    source: Crops
    target: Crops


class DualAdaptive(TrainingMethod):
    """The dual-adaptive pyramid network in training.

    Batch statistics never mix two labs: they are fixed, or source and target pass through the network one after the
    other.

    Args:
        network: the segmenter in use, trained on the source labs; it is changed.
        source: labelled images.
        targets: the new labs. Nothing but their windows is read.
        settings: the numbers.
        crop: side of a crop in pixels at the model's scale.
        batch: crops of each, source and target, in a step.
        seed: of the crops and changes of color.
        folder: where pseudo-labels are kept during the training.

    Raises:
        TrainingError: when a source image has no mask.
    """

    def __init__(
        self,
        network: PyramidSegmenter,
        source: Sequence[Sample],
        targets: Sequence[TargetLab],
        settings: AdaptSettings,
        *,
        crop: int,
        batch: int,
        seed: int,
        folder: Path,
    ) -> None:
        super().__init__(network, settings.ema_decay)
        if any(sample.mask is None for sample in source):
            raise TrainingError(
                "Expected a mask for every image of the source lab, some have none: see its manifest.csv."
            )
        self.targets, self.settings, self.folder, self.seed = tuple(targets), settings, folder, seed
        self._sampler = partial(CropSampler, size=crop, batch=batch, zoom=settings.zoom_range)
        self.source = self._sampler(_at_scales(source, targets), seed=seed)
        windows = [window for lab in targets for window in lab.windows]
        self.target = self._sampler([Sample(window) for window in windows], seed=seed + 1)
        self.colors = image_colors(read_image(window) for window in windows)
        self.image_classifier = ImageDomainClassifier(network.pyramid_channels) if settings.lambda_image else None
        self.feature_classifier = FeatureDomainClassifier(network.decoder_channels) if settings.lambda_feature else None
        classes = len(network.config.classes)
        self.knowledge = (
            estimate_source_priors(source, classes, settings) if settings.pseudo_label_weight else SourcePriors()
        )
        self._round = -1
        self._first = (copy.deepcopy(network),)  # in a tuple, so that it is no part of this module
        if settings.normalization == "shared":
            shared = _shared_statistics(network, targets)
            for each in (self.network, *([self.averaged] if self.averaged is not None else [])):
                write_statistics(each, shared)

    def train(self, mode: bool = True) -> Self:
        """As of any module; shared statistics stay as they are."""
        super().train(mode)
        if self.settings.normalization == "shared":
            freeze_statistics(self.network)
        return self

    def before_step(self, progress: float, fabric: Fabric) -> None:
        """Begin the next round of pseudo-labels when its time has come."""
        number = min(self.settings.pseudo_label_rounds - 1, int(progress * self.settings.pseudo_label_rounds))
        if not self.settings.pseudo_label_weight or number == self._round:
            return
        if fabric.is_global_zero:
            first = self._first[0].to(fabric.device)
            write_pseudo_labels(
                self.targets, number, self.folder, first=first, teacher=self._teacher(), knowledge=self.knowledge
            )
        fabric.barrier()
        self._round = number
        self.target = self._sampler(
            pseudo_labelled_samples(self.targets, number, self.folder), seed=self.seed + 2 + number
        )

    def batch(self, step: int, *, rank: int, world: int) -> AdaptationBatch:
        """Crops of both labs, with the changes of color made."""
        generator = step_generator(self.seed, step, rank)
        source = self.source.draw(step, rank=rank, world=world)
        target = self.target.draw(step, rank=rank, world=world)
        images = jitter_color(self.recolor(source.images, generator), self.settings.source_color_jitter, generator)
        changed = jitter_color(target.images, self.settings.target_color_jitter, generator)
        return AdaptationBatch(Crops(images, source.masks), Crops(changed, target.masks))

    def recolor(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Give some of the source's crops the colors of a target's window, wholly or on the way there."""
        count = len(images)
        picks = torch.randint(len(self.colors.mean), (count,), generator=generator)
        amount = torch.rand(count, generator=generator)
        amount = amount * (torch.rand(count, generator=generator) < self.settings.color_transfer_prob)
        return transfer_color(images, self.colors[picks], amount)

    def forward(self, batch: AdaptationBatch, progress: float) -> Losses:
        """L_seg, the two domain losses behind the reversed gradient, and the cross entropy to the pseudo-labels."""
        assert batch.source.masks is not None
        settings = self.settings
        source, target = self._features(batch) if self.needs_target(batch) else (self._of(batch.source.images), None)
        parts = {"segmentation": segmentation_loss(source.logits, batch.source.masks, alpha=settings.dice_weight)}
        if target is not None:
            parts |= self.domain_losses(source, target, grl_strength(progress, settings.grl_warmup))
            if batch.target.masks is not None:
                loss = segmentation_loss(target.logits, batch.target.masks, alpha=0)
                parts["pseudo_labels"] = settings.pseudo_label_weight * loss
        total = torch.stack(list(parts.values())).sum()
        return {"total": total, **{name: value.detach() for name, value in parts.items()}}

    def needs_target(self, batch: AdaptationBatch) -> bool:
        """Whether any loss of this step looks at the target."""
        return bool(self.image_classifier or self.feature_classifier) or batch.target.masks is not None

    def domain_losses(self, source: Features, target: Features, ramp: float) -> Losses:
        """The losses of the two domain classifiers; their gradient reaches the segmenter reversed.

        Args:
            source: features of source crops.
            target: features of target crops.
            ramp: share of λ in force, 0..1.
        """
        losses: Losses = {}
        if self.image_classifier is not None:
            strength = ramp * self.settings.lambda_image
            losses["domain_image"] = _both(
                self.image_classifier(reverse_gradient(source.pyramid, strength)),
                self.image_classifier(reverse_gradient(target.pyramid, strength)),
            )
        if self.feature_classifier is not None:
            strength = ramp * self.settings.lambda_feature
            losses["domain_feature"] = _both(
                self.feature_classifier([reverse_gradient(level, strength) for level in source.decoder]),
                self.feature_classifier([reverse_gradient(level, strength) for level in target.decoder]),
            )
        return losses

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The segmenter's parameters, and the classifiers' with a learning rate of their own."""
        groups: list[dict[str, Any]] = [{"params": list(self.network.parameters()), "lr": self.settings.learning_rate}]
        rate = self.settings.classifier_learning_rate
        groups += [{"params": list(it.parameters()), "lr": rate} for it in self.classifiers()]
        return groups

    def classifiers(self) -> list[torch.nn.Module]:
        """The domain classifiers that are switched on."""
        return [it for it in (self.image_classifier, self.feature_classifier) if it is not None]

    def _features(self, batch: AdaptationBatch) -> tuple[Features, Features]:
        """Of both labs: in one pass, which is faster, where the statistics are fixed and so cannot mix."""
        if self.settings.normalization != "shared":
            return self._of(batch.source.images), self._of(batch.target.images)
        count = len(batch.source.images)
        logits, pyramid, decoder = self._of(torch.cat([batch.source.images, batch.target.images]))
        return (
            Features(logits[:count], pyramid[:count], tuple(level[:count] for level in decoder)),
            Features(logits[count:], pyramid[count:], tuple(level[count:] for level in decoder)),
        )

    def _of(self, images: torch.Tensor) -> Features:
        return self.network.features(images)

    def _teacher(self) -> PyramidSegmenter:
        return copy.deepcopy(self.result()).eval()


def grl_strength(progress: float, ramp: float) -> float:
    """The share of λ in force, rising from 0 to 1: 2 / (1 + exp(−10 p)) − 1 (Ganin & Lempitsky 2015).

    Args:
        progress: of the training, 0..1.
        ramp: share of the training over which p goes from 0 to 1; 0 for full strength from the first step.
    """
    p = 1.0 if ramp == 0 else min(1.0, progress / ramp)
    return 2 / (1 + math.exp(-10 * p)) - 1


def _both(source_logits: torch.Tensor, target_logits: torch.Tensor) -> torch.Tensor:
    return 0.5 * (domain_loss(source_logits, False) + domain_loss(target_logits, True))


def _at_scales(source: Sequence[Sample], targets: Sequence[TargetLab]) -> list[Sample]:
    """The source's images at their own scale, and once more at that of each lab whose scale differs; the own scale
    counts double then, so that it is not lost.
    """
    others = {1 / lab.shift.zoom for lab in targets if max(lab.shift.zoom, 1 / lab.shift.zoom) > _SAME_SCALE}
    zooms = [1.0, 1.0, *sorted(others)] if others else [1.0]
    return [Sample(it.image, it.mask, it.zoom * zoom) for zoom in zooms for it in source]


def _shared_statistics(network: PyramidSegmenter, targets: Sequence[TargetLab]) -> NormStatistics:
    """Half those that the network knows, half those of the new labs, all labs alike."""
    shared = read_statistics(network)
    for number, lab in enumerate(targets):
        own = mix_statistics(lab.shift.statistics, lab.shift.zoomed_statistics, 0.5)
        shared = mix_statistics(shared, own, 1 / (len(targets) + number + 1))  # 1/(2n) each in the end
    return shared
