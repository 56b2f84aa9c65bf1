"""Source priors: what the labelled labs state about the labels of any lab.

These are the properties of their regions, and whether color predicts the classes. Where it does, an image's colors
depend on its content, so that colors vote on the labels; where it does not, they depend on the stain, so that images
can be aligned to the colors of the source labs. Neither holds for a lab of another modality, such as gray images where
the source labs are stained.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from microseg.annotations.index_masks import read_mask
from microseg.config.training_params import AdaptSettings
from microseg.datasets.sampling import Sample
from microseg.slides.modality import Modality, lab_modality
from microseg.slides.region import read_source
from microseg.training.adaptation.color_voting import color_predicts_classes
from microseg.training.adaptation.domain_shift import center_crop, to_batch
from microseg.training.adaptation.region_rules import RegionRules, region_rules
from microseg.training.color_augmentation import ColorStatistics, color_statistics

__all__ = ["SourcePriors", "estimate_source_priors", "image_colors"]

_RULE_MASKS = 100  # masks that region rules are estimated from
_COLOR_IMAGES = 40  # images that colors are estimated from
_COLOR_SIDE = 512  # pixels, of the center crops of these images


@dataclass(frozen=True)
class SourcePriors:
    """Priors for pseudo-labels of a target lab; none by default.

    Attributes:
        rules: Properties of regions.
        color_voting: Whether color clusters of the target lab vote on its labels; see `voted_labels`.
        colors: Mean colors of the source labs, for color-aligned test-time augmentation; None for none.
        modality: Modality of the source labs; color voting and colors are for labs of the same one. None if unknown.
    """

    rules: RegionRules = field(default_factory=RegionRules)
    color_voting: bool = False
    colors: ColorStatistics | None = None
    modality: Modality | None = None

    def for_modality(self, modality: Modality) -> "SourcePriors":
        """The priors that hold for a lab of a modality."""
        if self.modality in (None, modality):
            return self
        return SourcePriors(self.rules, modality=self.modality)


def estimate_source_priors(source: Sequence[Sample], classes: int, settings: AdaptSettings) -> SourcePriors:
    """Estimate the priors from a random subset of the source images.

    Args:
        source: Labelled images.
        classes: Number of classes K, including the background.
        settings: States which priors to estimate.
    """
    order = np.random.default_rng(0).permutation(len(source))
    chosen = [source[index] for index in order]
    rules = RegionRules()
    if settings.region_rules:
        masks = ((read_mask(sample.mask), sample.zoom) for sample in chosen[:_RULE_MASKS] if sample.mask is not None)
        rules = region_rules(masks, classes)
    if not (settings.color_cluster_voting or settings.color_aligned_tta):
        return SourcePriors(rules)
    pairs = [(read_source(it.image), read_mask(it.mask)) for it in chosen[:_COLOR_IMAGES] if it.mask is not None]
    images, cropped_masks = ([center_crop(it, _COLOR_SIDE) for it in each] for each in zip(*pairs, strict=True))
    modality = lab_modality(images)
    if color_predicts_classes(images, cropped_masks, classes):
        return SourcePriors(rules, color_voting=settings.color_cluster_voting, modality=modality)
    if not settings.color_aligned_tta:
        return SourcePriors(rules)
    colors = image_colors(images)
    mean = ColorStatistics(colors.mean.mean(0, keepdim=True), colors.covariance.mean(0, keepdim=True))
    return SourcePriors(rules, colors=mean, modality=modality)


def image_colors(images: Iterable[npt.NDArray[np.uint8]]) -> ColorStatistics:
    """Color statistics of B images, (H, W, 3) each."""
    each = [color_statistics(to_batch(image, torch.device("cpu"))) for image in images]
    return ColorStatistics(torch.cat([one.mean for one in each]), torch.cat([one.covariance for one in each]))
