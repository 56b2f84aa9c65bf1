"""The dual-adaptive pyramid network: adaptation to unlabelled target labs.

One simultaneous min–max game: the segmenter minimizes L_seg − λ_img·L_img − λ_feat·L_feat while the two domain
classifiers minimize L_img and L_feat. It is implemented by gradient reversal (Ganin & Lempitsky 2015): one backward
pass and one optimizer for both, without alternating updates that would have to be balanced.

Each of these additions can be switched off: source crops in the target's colors and at its scale (their labels stay
valid), batch-norm statistics shared by all labs, and pseudo-labels of the target images in rounds.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from microseg.config.training_params import AdaptSettings
from microseg.datasets.sampling import Crops, Sample, step_generator
from microseg.models.domain_classifiers import FeatureDomainClassifier, ImageDomainClassifier, reverse_gradient
from microseg.models.losses import domain_loss
from microseg.models.network import Features, PyramidSegmenter
from microseg.slides.images import read_image
from microseg.training.adaptation.domain_shift import TargetLab
from microseg.training.adaptation.self_training import SelfTraining
from microseg.training.adaptation.source_priors import SourcePriors, estimate_source_priors, image_colors
from microseg.training.color_augmentation import (
    ColorMap,
    apply_jitter,
    color_statistics,
    draw_jitter,
    map_color,
    transfer_map,
)
from microseg.training.method import DrawnCrops, Losses, instance_losses

__all__ = ["AdaptationBatch", "DrawnBatch", "DualAdaptivePyramid", "domain_pair_loss", "grl_strength"]

_SAME_SCALE = 1.1  # labs whose scales differ by a smaller factor share their crops


class AdaptationBatch(NamedTuple):
    """Crops of source and target labs, with random color changes.

    Attributes:
        source: Labelled crops, some of them in the target's colors or at its scale.
        target: Crops of the target labs; their masks are pseudo-labels, None where there are none.
    """

    source: Crops
    target: Crops


class DrawnBatch(NamedTuple):
    """An `AdaptationBatch` as it is drawn, with the random numbers of its color changes.

    Attributes:
        source: Source crops.
        target: Target crops.
        colors: The target's colors for source crops; None for none.
    """

    source: DrawnCrops
    target: DrawnCrops
    colors: ColorMap | None


class DualAdaptivePyramid(SelfTraining):
    """Training of the dual-adaptive pyramid network; named ``dual_adaptive_pyramid``.

    Batch statistics never mix source and target: they are fixed, or each passes through the network separately.

    Reference:
        Hou, Liu, et al., "Dual adaptive pyramid network for cross-stain histopathology image segmentation",
        MICCAI 2019, arXiv 1909.11524.
    """

    def __init__(
        self,
        network: PyramidSegmenter,
        source: Sequence[Sample],
        targets: Sequence[TargetLab],
        settings: AdaptSettings,
        **options: Any,
    ) -> None:
        super().__init__(network, source, targets, settings, **options)
        self.source = self.sampler(_at_scales(source, targets), seed=self.seed)
        windows = [window for lab in targets for window in lab.windows]
        self.target = self.sampler([Sample(window) for window in windows], seed=self.seed + 1)
        self.colors = image_colors(read_image(window) for window in windows)
        self.image_classifier = ImageDomainClassifier(network.pyramid_channels) if settings.lambda_image else None
        self.feature_classifier = FeatureDomainClassifier(network.decoder_channels) if settings.lambda_feature else None
        classes = len(network.config.classes)
        self.priors = (
            estimate_source_priors(source, classes, settings) if settings.pseudo_label_weight else SourcePriors()
        )
        self.prepare_rounds()

    def uses_pseudo_labels(self) -> bool:
        """Whether the cross entropy to them has a weight."""
        return bool(self.settings.pseudo_label_weight)

    def batch(self, step: int, *, rank: int, world: int) -> DrawnBatch:
        """Crops of source and target labs, and the random numbers of color transfer and color jitter."""
        generator, settings = step_generator(self.seed, step, rank), self.settings
        source = self.source.draw_bytes(step, rank=rank, world=world)
        target = self.target.draw_bytes(step, rank=rank, world=world)
        colors = self.draw_colors(source.images, generator) if settings.color_transfer_prob else None
        jitter = draw_jitter(len(source.images), settings.source_color_jitter, generator)
        other = draw_jitter(len(target.images), settings.target_color_jitter, generator)
        return DrawnBatch(DrawnCrops(source, jitter), DrawnCrops(target, other), colors)

    def augment(self, batch: Any, step: int, *, rank: int) -> Any:
        """Crops with color transfer and color jitter; batches of another kind, of subclasses, as they are."""
        if not isinstance(batch, DrawnBatch):
            return batch
        generator = step_generator(self.seed, step, rank, device=batch.source.crops.images.device)
        source = batch.source.crops.to_float()
        if batch.colors is not None:
            source = source._replace(images=self.recolor(source.images, batch.colors, generator))
        if batch.source.jitter is not None:
            source = source._replace(images=apply_jitter(source.images, batch.source.jitter, generator))
        return AdaptationBatch(source, batch.target.changed(generator))

    def draw_colors(self, images: torch.Tensor, generator: torch.Generator) -> ColorMap:
        """Draw the colors of source crops: some move, partly or fully, to those of a random target window.

        Args:
            images: (B, 3, S, S), uint8, on the CPU.
            generator: Random generator, on the CPU.
        """
        count = len(images)
        picks = torch.randint(len(self.colors.mean), (count,), generator=generator)
        amount = torch.rand(count, generator=generator)
        amount = amount * (torch.rand(count, generator=generator) < self.settings.color_transfer_prob)
        moved = torch.nonzero(amount)[:, 0]
        matrix, offset = torch.eye(3).repeat(count, 1, 1), torch.zeros(count, 3)
        if len(moved):
            own = color_statistics(images[moved].float() / 255)
            colors = transfer_map(own, self.colors[picks[moved]], amount[moved])
            matrix[moved], offset[moved] = colors.matrix.float(), colors.offset.float()
        return ColorMap(matrix, offset)

    def recolor(self, images: torch.Tensor, colors: ColorMap, generator: torch.Generator) -> torch.Tensor:  # noqa: ARG002 (of other transfers)
        """Change the colors of source crops (B, 3, S, S) in 0..1; the generator is for further random numbers."""
        return map_color(images, colors)

    def forward(self, batch: AdaptationBatch, progress: float) -> Losses:
        """L_seg, the two domain losses behind the gradient reversal, and the cross entropy to the pseudo-labels."""
        assert batch.source.masks is not None
        settings, head, features = self.settings, self.network.head, self.network.features
        if self.needs_target(batch):
            source, target = self._features(batch)
        else:
            source, target = features(batch.source.images), None
        parts = {"segmentation": head.loss(source.logits, batch.source.masks, settings.dice_weight)}
        parts |= instance_losses(self.network, source.logits, batch.source)
        if target is not None:
            parts |= self.domain_losses(source, target, grl_strength(progress, settings.grl_warmup))
            if batch.target.masks is not None:
                loss = head.loss(target.logits, batch.target.masks, 0.0)
                parts["pseudo_labels"] = settings.pseudo_label_weight * loss
                for name, loss in instance_losses(self.network, target.logits, batch.target).items():
                    parts[f"pseudo_{name}"] = settings.pseudo_label_weight * loss
        total = torch.stack(list(parts.values())).sum()
        return {"total": total, **{name: value.detach() for name, value in parts.items()}}

    def needs_target(self, batch: AdaptationBatch) -> bool:
        """Whether any loss of this step depends on the target crops."""
        return bool(self.image_classifier or self.feature_classifier) or batch.target.masks is not None

    def domain_losses(self, source: Features, target: Features, strength: float) -> Losses:
        """Losses of the two domain classifiers; the segmenter gets their gradient reversed.

        Args:
            source: Features of source crops.
            target: Features of target crops.
            strength: Current fraction of λ_img and λ_feat, 0..1.
        """
        losses: Losses = {}
        if self.image_classifier is not None:
            weight = strength * self.settings.lambda_image
            losses["domain_image"] = domain_pair_loss(
                self.image_classifier(reverse_gradient(source.pyramid, weight)),
                self.image_classifier(reverse_gradient(target.pyramid, weight)),
            )
        if self.feature_classifier is not None:
            weight = strength * self.settings.lambda_feature
            losses["domain_feature"] = domain_pair_loss(
                self.feature_classifier([reverse_gradient(level, weight) for level in source.decoder]),
                self.feature_classifier([reverse_gradient(level, weight) for level in target.decoder]),
            )
        return losses

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters of the segmenter, and of each classifier with the classifiers' learning rate."""
        rate = self.settings.classifier_learning_rate
        groups = [{"params": list(classifier.parameters()), "lr": rate} for classifier in self.classifiers()]
        return super().parameter_groups() + groups

    def classifiers(self) -> list[torch.nn.Module]:
        """The domain classifiers in use."""
        return [it for it in (self.image_classifier, self.feature_classifier) if it is not None]

    def _features(self, batch: AdaptationBatch) -> tuple[Features, Features]:
        """Features of source and target crops: in one pass, which is faster, where batch-norm statistics are fixed."""
        if self.settings.normalization != "shared":
            return self.network.features(batch.source.images), self.network.features(batch.target.images)
        count = len(batch.source.images)
        logits, pyramid, decoder = self.network.features(torch.cat([batch.source.images, batch.target.images]))
        return (
            Features(logits[:count], pyramid[:count], tuple(level[:count] for level in decoder)),
            Features(logits[count:], pyramid[count:], tuple(level[count:] for level in decoder)),
        )


def grl_strength(progress: float, warmup: float) -> float:
    """Fraction of λ in force, which rises from 0 to 1: 2 / (1 + exp(−10 p)) − 1 (Ganin & Lempitsky 2015).

    Args:
        progress: Completed fraction of the training, 0..1.
        warmup: Fraction of the training over which p rises from 0 to 1; 0 for full strength from the first step.
    """
    p = 1.0 if warmup == 0 else min(1.0, progress / warmup)
    return 2 / (1 + math.exp(-10 * p)) - 1


def domain_pair_loss(source_logits: torch.Tensor, target_logits: torch.Tensor) -> torch.Tensor:
    """Domain loss of a classifier, averaged over source and target."""
    return 0.5 * (domain_loss(source_logits, False) + domain_loss(target_logits, True))


def _at_scales(source: Sequence[Sample], targets: Sequence[TargetLab]) -> list[Sample]:
    """The source images at their scale, and once more at that of each lab whose scale differs; their own scale then
    counts twice, so that it stays frequent.
    """
    others = {1 / lab.shift.zoom for lab in targets if max(lab.shift.zoom, 1 / lab.shift.zoom) > _SAME_SCALE}
    zooms = [1.0, 1.0, *sorted(others)] if others else [1.0]
    return [replace(it, zoom=it.zoom * zoom) for zoom in zooms for it in source]
