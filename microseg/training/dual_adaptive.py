"""Adaptation to an unlabelled lab: the dual-adaptive pyramid network and what is put around it.

One simultaneous min–max game (SPEC): the segmenter minimises L_seg − λ_img·L_img − λ_feat·L_feat while the two domain
classifiers minimise L_img and L_feat. It is realised by gradient reversal (Ganin & Lempitsky 2015): one backward pass
and one optimiser for both players, with no alternation to balance, which is also what the source calls simultaneous.

Around it, each switchable: source crops in the target's colours (their labels stay true), and a mean teacher whose
confident pseudo-labels on target crops train the student under strong changes of colour.
"""

import math
from typing import Any, NamedTuple

import torch

from microseg.data.colour import ColourStatistics, jitter_colour, transfer_colour
from microseg.data.sampling import Crops, CropSampler, step_generator
from microseg.errors import TrainingError
from microseg.losses import consistency_loss, domain_loss, segmentation_loss
from microseg.model import FeatureDomainClassifier, Features, ImageDomainClassifier, PyramidSegmenter, reverse_gradient
from microseg.training.method import Losses, TrainingMethod
from microseg.training.settings import AdaptSettings

__all__ = ["AdaptationBatch", "DualAdaptive", "reversal_strength"]


class AdaptationBatch(NamedTuple):
    """Crops of both labs.

    Attributes:
        source: labelled crops, some of them in the target's colours.
        target: the new lab's crops, (B, 3, S, S).
        target_strong: the same crops under strong changes of colour, (B, 3, S, S).
    """

    source: Crops
    target: torch.Tensor
    target_strong: torch.Tensor


class DualAdaptive(TrainingMethod):
    """The dual-adaptive pyramid network in training.

    Each lab passes through the network on its own, so that batch statistics never mix two labs.

    Args:
        network: the segmenter in production, trained on the source lab; it is changed.
        source: sampler of labelled crops.
        target: sampler of the new lab's crops; where it has masks, they are left out and not read.
        colours: colour statistics of the new lab's images, to give to source crops.
        settings: the numbers.

    Raises:
        TrainingError: when a source image has no mask.
    """

    def __init__(
        self,
        network: PyramidSegmenter,
        source: CropSampler,
        target: CropSampler,
        colours: ColourStatistics,
        settings: AdaptSettings,
    ) -> None:
        super().__init__(network, settings.average)
        if not source.labelled:
            raise TrainingError(
                "Expected a mask for every image of the source lab, some have none: see its manifest.csv."
            )
        self.source, self.target, self.colours, self.settings = source, target.unlabelled(), colours, settings
        self.image_classifier = ImageDomainClassifier(network.pyramid_filters) if settings.lambda_image else None
        self.feature_classifier = FeatureDomainClassifier(network.decoder_filters) if settings.lambda_feature else None

    def batch(self, step: int, *, rank: int, world: int) -> AdaptationBatch:
        """Crops of both labs, with the changes of colour made."""
        generator = step_generator(self.source.seed, step, rank)
        source = self.source.draw(step, rank=rank, world=world)
        target = self.target.draw(step, rank=rank, world=world)
        count = len(source.images)
        picks = torch.randint(len(self.colours.mean), (count,), generator=generator)
        amount = torch.rand(count, generator=generator)
        amount = amount * (torch.rand(count, generator=generator) < self.settings.transfer)
        images = transfer_colour(source.images, self.colours[picks], amount)
        return AdaptationBatch(
            source=Crops(jitter_colour(images, self.settings.colour, generator), source.masks),
            target=target.images,
            target_strong=jitter_colour(target.images, self.settings.strong, generator),
        )

    def forward(self, batch: AdaptationBatch, step: int) -> Losses:
        """L_seg, the two domain losses behind the reversed gradient, and the teacher's pseudo-labels."""
        assert batch.source.masks is not None
        settings = self.settings
        source = self.network.features(batch.source.images)
        segmentation = segmentation_loss(source.logits, batch.source.masks, alpha=settings.alpha)
        parts = {"segmentation": segmentation}
        teaches = settings.consistency > 0 and step >= settings.consistency_from * settings.steps
        if self.image_classifier or self.feature_classifier or teaches:
            target = self.network.features(batch.target_strong if teaches else batch.target)
            parts |= self._domain_losses(source, target, reversal_strength(step, settings.steps, settings.ramp))
            if teaches:
                loss, used = consistency_loss(target.logits, self._pseudo_labels(batch.target), settings.threshold)
                parts["consistency"] = settings.consistency * loss
        total = torch.stack(list(parts.values())).sum()
        reported = {name: value.detach() for name, value in parts.items()}
        if teaches:
            reported["pseudo_labelled"] = torch.as_tensor(used)
        return {"total": total, **reported}

    def _domain_losses(self, source: Features, target: Features, ramp: float) -> Losses:
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

    @torch.no_grad()
    def _pseudo_labels(self, images: torch.Tensor) -> torch.Tensor:
        """The teacher's probabilities, normalised by the batch's own statistics, which are the new lab's."""
        teacher = self.averaged
        assert teacher is not None
        kept = [buffer.clone() for buffer in teacher.buffers()]
        teacher.train()
        probabilities: torch.Tensor = teacher(images).softmax(1)  # (B, K, S, S)
        for buffer, value in zip(teacher.buffers(), kept, strict=True):
            buffer.copy_(value)
        return probabilities

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The segmenter's parameters, and the classifiers' with a learning rate of their own."""
        groups: list[dict[str, Any]] = [{"params": list(self.network.parameters()), "lr": self.settings.learning_rate}]
        for classifier in (self.image_classifier, self.feature_classifier):
            if classifier is not None:
                rate = self.settings.classifier_learning_rate
                groups.append({"params": list(classifier.parameters()), "lr": rate})
        return groups


def reversal_strength(step: int, steps: int, ramp: float) -> float:
    """The share of λ in force at a step, rising from 0 to 1: 2 / (1 + exp(−10 p)) − 1 (Ganin & Lempitsky 2015).

    Args:
        step: number of the step, from 0.
        steps: number of all steps.
        ramp: share of the steps over which p goes from 0 to 1; 0 for full strength from the first step.
    """
    progress = 1.0 if ramp == 0 else min(1.0, step / (ramp * steps))
    return 2 / (1 + math.exp(-10 * progress)) - 1


def _both(source_logits: torch.Tensor, target_logits: torch.Tensor) -> torch.Tensor:
    return 0.5 * (domain_loss(source_logits, False) + domain_loss(target_logits, True))
