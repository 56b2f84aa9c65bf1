"""What the labelled labs tell about any lab: what regions are like, and whether color tells the classes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from microseg.annotations.index_masks import read_mask
from microseg.config.params import AdaptSettings
from microseg.datasets.sampling import Sample
from microseg.slides.images import read_image
from microseg.training.adaptation.color_voting import color_predicts_classes
from microseg.training.adaptation.domain_shift import middle, to_batch
from microseg.training.adaptation.region_rules import RegionRules, region_rules
from microseg.training.color_augmentation import ColorStatistics, color_statistics

__all__ = ["SourcePriors", "estimate_source_priors", "image_colors"]

_MASKS = 100  # read to know what regions are like
_IMAGES = 40  # read to know their colors, and whether these tell the classes
_SIDE = 512  # of their middles, pixels


@dataclass(frozen=True)
class SourcePriors:
    """What helps a teacher to label a new lab. By default nothing.

    Attributes:
        rules: what regions are like.
        votes: whether the new lab's pixels of one color vote together; see `voted_labels`.
        colors: of the labelled labs, in which the teacher is to see the new lab's images too; None: it is not.
    """

    rules: RegionRules = field(default_factory=RegionRules)
    votes: bool = False
    colors: ColorStatistics | None = None


def estimate_source_priors(source: Sequence[Sample], classes: int, settings: AdaptSettings) -> SourcePriors:
    """Learn from a random choice of the labelled labs' images.

    Where color tells the classes, colors vote: an image's colors are those of what is on it, and another balance of
    them would be another class. Where it does not, they are the stain's, and can be brought near those that are known.

    Args:
        source: labelled images.
        classes: number of classes K, background among them.
        settings: what of it is wanted.
    """
    order = np.random.default_rng(0).permutation(len(source))
    chosen = [source[index] for index in order]
    rules = RegionRules()
    if settings.region_rules:
        seen = ((read_mask(sample.mask), sample.zoom) for sample in chosen[:_MASKS] if sample.mask is not None)
        rules = region_rules(seen, classes)
    if not (settings.color_cluster_voting or settings.color_aligned_tta):
        return SourcePriors(rules)
    pairs = [(read_image(it.image), read_mask(it.mask)) for it in chosen[:_IMAGES] if it.mask is not None]
    images, masks = ([middle(it, _SIDE) for it in each] for each in zip(*pairs, strict=True))
    if color_predicts_classes(images, masks, classes):
        return SourcePriors(rules, votes=settings.color_cluster_voting)
    return SourcePriors(rules, colors=_mean_colors(images) if settings.color_aligned_tta else None)


def image_colors(images: Iterable[npt.NDArray[np.uint8]]) -> ColorStatistics:
    """The color statistics of B images, (H, W, 3) each."""
    each = [color_statistics(to_batch(image, torch.device("cpu"))) for image in images]
    return ColorStatistics(torch.cat([one.mean for one in each]), torch.cat([one.covariance for one in each]))


def _mean_colors(images: Iterable[npt.NDArray[np.uint8]]) -> ColorStatistics:
    each = image_colors(images)
    return ColorStatistics(each.mean.mean(0, keepdim=True), each.covariance.mean(0, keepdim=True))
