"""UPL-SFDA: source-free, pseudo-labels from several perturbed copies of the decoder."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.adaptation.alternatives.tent import entropy
from microseg.annotations.index_masks import IGNORE
from microseg.datasets.sampling import Crops
from microseg.training.adaptation.source_free import SourceFreeMethod
from microseg.training.method import Losses

__all__ = ["UncertainPseudoLabels", "image_dice"]

_HEADS = 4
_DROPOUT = 0.5  # of the features that each decoder starts from
_RELIABLE = 0.9  # mean probability from which a pixel is a pseudo-label
_BITS = 1.4427  # in one nat


class UncertainPseudoLabels(SourceFreeMethod):
    """Four decoders, each with its own rotation and dropout, learn from what their mean is certain of.

    Each step has two passes: the first gives the mean prediction, whose confident pixels are pseudo-labels; in the
    second, with other dropout, each decoder learns from them by Dice, and the entropy of the mean is minimized. The
    decoder of the images that are not rotated is the network's own, and is the result; the others are dropped.

    Reference:
        Wu et al., "UPL-SFDA: uncertainty-aware pseudo label guided source-free domain adaptation for medical image
        segmentation", IEEE TMI 2023.
    Deviation:
        The result is one network, not the mean of four. Left out: keeping only the largest component of each
        pseudo-label, which is for one organ per image. Optimizer, schedule and EMA are those of all methods here.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        network = self.network
        self.decoders = nn.ModuleList(copy.deepcopy(network.decoder) for _ in range(_HEADS - 1))
        self.heads = nn.ModuleList(copy.deepcopy(network.head) for _ in range(_HEADS - 1))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters of the network, and of the copies of its decoder."""
        copies = [*self.decoders.parameters(), *self.heads.parameters()]
        return [*super().parameter_groups(), {"params": copies, "lr": self.settings.learning_rate}]

    def forward(self, batch: Crops, progress: float) -> Losses:  # noqa: ARG002 (the same at every step)
        """Dice to the reliable pseudo-labels, and the entropy of the mean prediction, in bits per class."""
        with torch.no_grad():
            probability, labels = torch.stack(self.predictions(batch.images)).mean(0).max(1)
            labels[probability < _RELIABLE] = IGNORE
        predictions = self.predictions(batch.images)
        mean = torch.stack(predictions).mean(0)
        parts = {
            "pseudo_labels": torch.stack([1 - image_dice(each, labels).mean() for each in predictions]).mean(),
            "entropy": _BITS * entropy(mean) / mean.shape[1],
        }
        total = torch.stack(list(parts.values())).sum()
        return {"total": total, **{name: value.detach() for name, value in parts.items()}}

    def predictions(self, images: Tensor) -> list[Tensor]:
        """Probabilities by each decoder, each (B, K, S, S), of crops whose side is a multiple of the stride."""
        network = self.network
        decoders, heads = (network.decoder, *self.decoders), (network.head, *self.heads)
        results = []
        for turns, (decoder, head) in enumerate(zip(decoders, heads, strict=True)):
            rotated = torch.rot90(images, turns, (2, 3))
            encoded = network.encoder((rotated - network.mean) / network.std)
            pyramid = functional.dropout(network.pyramid(encoded[-1]), _DROPOUT, self.training)
            logits = functional.interpolate(head(decoder(encoded, pyramid)), size=rotated.shape[2:], mode="bilinear")
            results.append(torch.rot90(network.head.probabilities(logits), -turns, (2, 3)))
        return results


def image_dice(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Soft Dice of each image, mean over the classes that its labels have; 1 where every pixel is ignored.

    Shape:
        (B, K, H, W) and (B, H, W), 255 is ignored → (B,)
    """
    known = (labels != IGNORE)[:, None]  # (B, 1, H, W)
    classes = torch.arange(probabilities.shape[1], device=labels.device).view(1, -1, 1, 1)
    reference = (labels[:, None] == classes).to(probabilities.dtype)  # (B, K, H, W)
    overlap, predicted, referred = (
        it.sum((2, 3)) for it in (probabilities * reference, probabilities * known, reference)
    )  # (B, K) each
    present = referred > 0
    dice = torch.where(present, 2 * overlap / (predicted + referred).clamp_min(1e-6), 0.0)
    count = present.sum(1)
    return torch.where(count > 0, dice.sum(1) / count.clamp_min(1), 1.0)
