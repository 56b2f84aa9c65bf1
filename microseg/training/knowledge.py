"""What the labelled labs tell about any lab: what regions are like, and whether colour tells the classes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from microseg.data.colour import ColourStatistics, colour_statistics
from microseg.data.images import read_image, read_mask
from microseg.data.sampling import Sample
from microseg.training.colour_votes import colours_tell_classes
from microseg.training.regions import RegionRules, region_rules
from microseg.training.settings import AdaptSettings
from microseg.training.shift import middle, to_batch

__all__ = ["Knowledge", "image_colours", "learn_from"]

_MASKS = 100  # read to know what regions are like
_IMAGES = 40  # read to know their colours, and whether these tell the classes
_SIDE = 512  # of their middles, pixels


@dataclass(frozen=True)
class Knowledge:
    """What helps a teacher to label a new lab. By default nothing.

    Attributes:
        rules: what regions are like.
        votes: whether the new lab's pixels of one colour vote together; see `voted_labels`.
        colours: of the labelled labs, in which the teacher is to see the new lab's images too; None: it is not.
    """

    rules: RegionRules = field(default_factory=RegionRules)
    votes: bool = False
    colours: ColourStatistics | None = None


def learn_from(source: Sequence[Sample], classes: int, settings: AdaptSettings) -> Knowledge:
    """Learn from a random choice of the labelled labs' images.

    Where colour tells the classes, colours vote: an image's colours are those of what is on it, and another balance of
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
    if not (settings.colour_votes or settings.colour_views):
        return Knowledge(rules)
    pairs = [(read_image(it.image), read_mask(it.mask)) for it in chosen[:_IMAGES] if it.mask is not None]
    images, masks = ([middle(it, _SIDE) for it in each] for each in zip(*pairs, strict=True))
    if colours_tell_classes(images, masks, classes):
        return Knowledge(rules, votes=settings.colour_votes)
    return Knowledge(rules, colours=_mean_colours(images) if settings.colour_views else None)


def image_colours(images: Iterable[npt.NDArray[np.uint8]]) -> ColourStatistics:
    """The colour statistics of B images, (H, W, 3) each."""
    each = [colour_statistics(to_batch(image, torch.device("cpu"))) for image in images]
    return ColourStatistics(torch.cat([one.mean for one in each]), torch.cat([one.covariance for one in each]))


def _mean_colours(images: Iterable[npt.NDArray[np.uint8]]) -> ColourStatistics:
    each = image_colours(images)
    return ColourStatistics(each.mean.mean(0, keepdim=True), each.covariance.mean(0, keepdim=True))
