"""Self-training with a mean teacher: DAFormer's training, and its extension by masked image consistency, MIC."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from microseg.annotations.index_masks import IGNORE
from microseg.datasets.sampling import Crops, step_generator
from microseg.errors import TrainingError
from microseg.training.adaptation.dual_adaptive import DualAdaptivePyramid
from microseg.training.color_augmentation import jitter_color
from microseg.training.method import Losses

__all__ = ["MaskedConsistency", "MeanTeacher", "MixedBatch", "class_mix", "mask_patches"]

_CONFIDENT = 0.968  # probability from which a pixel counts
_PATCHES = 8  # along each side of a crop, for masking
_MASKED = 0.7  # fraction of the patches


class MixedBatch(NamedTuple):
    """Inputs of one step.

    Attributes:
        source: Labelled crops.
        target: Target crops as they are, for the teacher (B, 3, S, S).
        mixed: Target crops with objects of the source crops pasted, in other colors (B, 3, S, S).
        pasted: Whether a pixel of ``mixed`` is of the source crop (B, S, S).
        masked: Target crops in other colors, most patches black (B, 3, S, S); None for none.
    """

    source: Crops
    target: Tensor
    mixed: Tensor
    pasted: Tensor
    masked: Tensor | None


class MeanTeacher(DualAdaptivePyramid):
    """Pseudo-labels by the EMA of the network for target crops with pasted source objects and strong color jitter.

    Reference:
        Hoyer et al., "DAFormer: improving network architectures and training strategies for domain-adaptive semantic
        segmentation", CVPR 2022: weight of the pseudo-labels, which is the share of confident pixels; with ClassMix
        of Tranheden et al., "DACS: domain adaptation via cross-domain mixed sampling", WACV 2021.
    Deviation:
        On this package's network, losses and color jitter, with its faster EMA. Left out: rare class sampling and the
        feature distance to ImageNet, which need many classes and classes of ImageNet.

    Raises:
        TrainingError: There is no EMA (``ema_decay`` is 0).
    """

    masks_patches = False

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        if self.averaged is None:
            raise TrainingError("Expected an EMA, which is the teacher, got ema_decay=0: set adapt.ema_decay above 0.")
        for layer in self.averaged.modules():
            if isinstance(layer, _BatchNorm):
                layer.momentum = 0.0  # the teacher uses batch statistics, but they are not averaged into its own

    def batch(self, step: int, *, rank: int, world: int) -> MixedBatch:  # type: ignore[override]
        """Crops of source and target, mixed and masked."""
        generator = step_generator(self.seed, step, rank)
        source = self.source.draw(step, rank=rank, world=world)
        target = self.target.draw(step, rank=rank, world=world).images
        assert source.masks is not None
        pasted = class_mix(source.masks, generator)
        strong = self.settings.target_color_jitter
        mixed = jitter_color(torch.where(pasted[:, None], source.images, target), strong, generator)
        masked = mask_patches(jitter_color(target, strong, generator), generator) if self.masks_patches else None
        images = jitter_color(source.images, self.settings.source_color_jitter, generator)
        return MixedBatch(Crops(images, source.masks), target, mixed, pasted, masked)

    def forward(self, batch: MixedBatch, progress: float) -> Losses:  # type: ignore[override]  # noqa: ARG002
        """L_seg, and the weighted cross entropy to the pseudo-labels of mixed (and of masked) crops."""
        assert batch.source.masks is not None
        labels, confidence = self.pseudo_labels(batch.target)
        logits = self.network(batch.source.images)
        mixed_labels = torch.where(batch.pasted, batch.source.masks, labels)
        weights = torch.where(batch.pasted, 1.0, confidence)
        parts = {
            "segmentation": self.network.head.loss(logits, batch.source.masks, self.settings.dice_weight),
            "mixed": _weighted_cross_entropy(self.network(batch.mixed), mixed_labels, weights),
        }
        if batch.masked is not None:
            parts["masked"] = _weighted_cross_entropy(
                self.network(batch.masked), labels, confidence.expand(labels.shape)
            )
        total = torch.stack(list(parts.values())).sum()
        return {"total": total, **{name: value.detach() for name, value in parts.items()}}

    @torch.no_grad()
    def pseudo_labels(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Labels by the teacher (B, H, W), and the share of confident pixels (), which is their weight."""
        teacher = self.result()
        probability, labels = teacher.head.probabilities(teacher(target)).max(1)
        return labels, (probability > _CONFIDENT).float().mean()


class MaskedConsistency(MeanTeacher):
    """MIC: the mean teacher, and its pseudo-labels for crops of which most patches are masked.

    Reference:
        Hoyer et al., "MIC: masked image consistency for context-enhanced domain adaptation", CVPR 2023.
    Deviation:
        Patches are an eighth of a crop, as 64 pixels of a crop of 512 in the paper.
    """

    masks_patches = True


def class_mix(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Choose the pixels of half of the classes of each mask, rounded up: (B, H, W) → (B, H, W), bool."""
    chosen = torch.zeros(masks.shape, dtype=torch.bool)
    for mask, pixels in zip(masks, chosen, strict=True):
        classes = mask.unique()
        classes = classes[classes != IGNORE]
        picks = torch.randperm(len(classes), generator=generator)[: (len(classes) + 1) // 2]
        pixels[torch.isin(mask, classes[picks])] = True
    return chosen


def mask_patches(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blacken 70 % of the patches of each image: (B, 3, S, S) → (B, 3, S, S)."""
    kept = (torch.rand((len(images), 1, _PATCHES, _PATCHES), generator=generator) >= _MASKED).to(images.dtype)
    return images * functional.interpolate(kept, size=images.shape[2:], mode="nearest")


def _weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Mean over all pixels of weight times cross entropy: (B, K, H, W), (B, H, W), (B, H, W) → ()."""
    return (weights * functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")).mean()
