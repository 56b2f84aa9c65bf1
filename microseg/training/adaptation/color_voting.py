"""Votes of a lab's colors on the classes of its pixels: pixels of one color mostly are of one class.

A segmenter that a new lab confuses takes things of one color for this here and for that there, such as red cells that
its own lab never had. Where color tells the classes in the labelled labs, all pixels of one color in the new lab vote
together on what they are. Where the vote is for another class than the segmenter, nothing is said about a pixel: not
everything of one color is of one class either. Where classes differ by shape or texture instead, colors say nothing
and are not asked.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.cluster.vq import kmeans2, vq
from torch import Tensor

from microseg.annotations.index_masks import IGNORE
from microseg.datasets.stain import optical_density
from microseg.training.adaptation.region_rules import RegionRules, most_probable, plausible_labels

__all__ = ["color_clusters", "color_predicts_classes", "voted_labels"]

_GROUPS = 32
_PIXELS = 20_000  # of a lab, from which its groups are found
_GRAIN = 1e-3  # of optical density, so that images of few colors can be divided too
_ROUNDS = 3  # of votes: what the rules take away does not vote in the next
_TOLD = 0.5  # of what there is to know about a pixel's class; less, and colors do not vote
_UNSEEN = 1e-3  # pixels of each class that every group has beforehand

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.uint8]


def color_clusters(images: Sequence[Image], seed: int = 0) -> list[npt.NDArray[np.uint8]]:
    """Divide a lab's pixels by color: k-means of the optical density, smoothed a little.

    Args:
        images: of one lab.
        seed: of the pixels from which the groups are found, and of the first centers.

    Shape:
        images (H, W, 3) → (H, W), each

    Returns:
        The number of each pixel's group, below 32.
    """
    rng = np.random.default_rng(seed)
    share = -(-_PIXELS // len(images))
    densities = [ndimage.gaussian_filter(optical_density(image), (1, 1, 0)) for image in images]
    chosen = np.concatenate([each[rng.integers(0, len(each), share)] for each in (d.reshape(-1, 3) for d in densities)])
    chosen += rng.normal(0, _GRAIN, chosen.shape).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a group may stay empty
        centers, _ = kmeans2(chosen, _GROUPS, minit="++", rng=rng)
    return [vq(each.reshape(-1, 3), centers)[0].astype(np.uint8).reshape(each.shape[:2]) for each in densities]


def color_predicts_classes(images: Sequence[Image], masks: Sequence[Mask], classes: int) -> bool:
    """Whether color alone tells most of what there is to know about the class of a labelled lab's pixel.

    Told by the mutual information of color and class, as a share of the entropy of the class.

    Args:
        images: of labelled labs.
        masks: of class indices; others, such as ignored pixels, do not count.
        classes: number of classes K.

    Shape:
        images (H, W, 3), masks (H, W)
    """
    votes = _votes(masks, color_clusters(images), classes)
    together = votes / votes.sum()
    group, label = together.sum(1, keepdims=True), together.sum(0, keepdims=True)
    information = (together * np.log(together / (group * label))).sum()
    entropy = -(label * np.log(label)).sum()
    return bool(information > _TOLD * entropy)


def voted_labels(
    probabilities: Sequence[Tensor], groups: Sequence[npt.NDArray[np.uint8]], rules: RegionRules, zoom: float
) -> list[Mask]:
    """The classes of a lab's pixels where what a segmenter says and the vote of the pixels of their color agree.

    Args:
        probabilities: of the classes, on the CPU.
        groups: of the same images; see `color_clusters`.
        rules: what regions are like; those that break them are taken out, and do not vote.
        zoom: factor by which the images are enlarged to the model's scale.

    Shape:
        (K, H, W) and (H, W) → (H, W), each

    Returns:
        Class indices; 255, ignored, where the vote is for another class than the segmenter.
    """
    alone = labels = plausible_labels(probabilities, rules, zoom)
    both = list(probabilities)
    for _ in range(_ROUNDS):
        votes = _votes(labels, groups, len(probabilities[0]))
        shares = probabilities[0].new_tensor((votes / votes.sum(1, keepdims=True)).T)  # (K, 32)
        both = [said * shares[:, group.astype(np.intp)] for said, group in zip(probabilities, groups, strict=True)]
        labels = plausible_labels(both, rules, zoom)
    each = zip(labels, most_probable(both), alone, strict=True)
    return [np.where((label == voted) & (voted != said), np.uint8(IGNORE), label) for label, voted, said in each]


def _votes(masks: Sequence[Mask], groups: Sequence[npt.NDArray[np.uint8]], classes: int) -> npt.NDArray[np.float64]:
    """Pixels of each class in each group: (32, K)."""
    votes = np.full((_GROUPS, classes), _UNSEEN)
    for mask, group in zip(masks, groups, strict=True):
        known = mask < classes
        pairs = group[known].astype(np.intp) * classes + mask[known]
        votes += np.bincount(pairs, minlength=votes.size).reshape(votes.shape)
    return votes
