"""Color-cluster voting: pixels of one color cluster vote on their class.

A segmenter often predicts different classes for objects of one color in a lab whose stain it was not trained on. Where
color predicts the classes in the source labs, the pixels of each color cluster of the target lab vote on their class.
Where the vote differs from the prediction, the pixel is ignored, since not all pixels of one color are of one class.
Where classes differ by shape or texture, colors are not used.
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

_CLUSTERS = 32
_PIXELS = 20_000  # of a lab, that the clusters are computed from
_NOISE = 1e-3  # of optical density, so that images of few colors can be clustered
_ROUNDS = 3  # of votes: regions removed by the rules do not vote in the next round
_MIN_INFORMATION = 0.5  # of color on the class, relative to the entropy of the class
_PRIOR_COUNT = 1e-3  # pixels of each class that every cluster starts with

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.uint8]


def color_clusters(images: Sequence[Image]) -> list[npt.NDArray[np.uint8]]:
    """Cluster a lab's pixels by color: k-means of the smoothed optical density.

    Args:
        images: Images of one lab.

    Shape:
        images (H, W, 3) → (H, W), each

    Returns:
        Cluster of each pixel, 0..31.
    """
    rng = np.random.default_rng(0)  # of pixels and initial centers
    share = -(-_PIXELS // len(images))
    densities = [ndimage.gaussian_filter(optical_density(image), (1, 1, 0)) for image in images]
    chosen = np.concatenate([each[rng.integers(0, len(each), share)] for each in (d.reshape(-1, 3) for d in densities)])
    chosen += rng.normal(0, _NOISE, chosen.shape).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a cluster may be empty
        centers, _ = kmeans2(chosen, _CLUSTERS, minit="++", rng=rng)
    return [vq(each.reshape(-1, 3), centers)[0].astype(np.uint8).reshape(each.shape[:2]) for each in densities]


def color_predicts_classes(images: Sequence[Image], masks: Sequence[Mask], classes: int) -> bool:
    """Whether the color of a pixel predicts its class in labelled labs.

    It does where the mutual information of color cluster and class is more than half the entropy of the class.

    Args:
        images: Images of labelled labs.
        masks: Class indices; other values, such as ignored pixels, do not count.
        classes: Number of classes K.

    Shape:
        images (H, W, 3), masks (H, W)
    """
    votes = _votes(masks, color_clusters(images), classes)
    joint = votes / votes.sum()
    cluster, label = joint.sum(1, keepdims=True), joint.sum(0, keepdims=True)
    information = (joint * np.log(joint / (cluster * label))).sum()
    entropy = -(label * np.log(label)).sum()
    return bool(information > _MIN_INFORMATION * entropy)


def voted_labels(
    probabilities: Sequence[Tensor], clusters: Sequence[npt.NDArray[np.uint8]], rules: RegionRules, zoom: float
) -> list[Mask]:
    """Label the pixels of a lab where the prediction and the vote of their color cluster agree.

    Args:
        probabilities: Predicted class probabilities, on the CPU.
        clusters: Color clusters of the same images; see `color_clusters`.
        rules: Properties of regions; regions that violate them are removed, and do not vote.
        zoom: Factor that enlarges the images to the model's scale.

    Shape:
        (K, H, W) and (H, W) → (H, W), each

    Returns:
        Class indices; 255 (ignored) where the vote is for another class than the prediction.
    """
    predicted = labels = plausible_labels(probabilities, rules, zoom)
    combined = list(probabilities)
    for _ in range(_ROUNDS):
        votes = _votes(labels, clusters, len(probabilities[0]))
        fractions = probabilities[0].new_tensor((votes / votes.sum(1, keepdims=True)).T)  # (K, 32)
        combined = [
            image * fractions[:, cluster.astype(np.intp)]
            for image, cluster in zip(probabilities, clusters, strict=True)
        ]
        labels = plausible_labels(combined, rules, zoom)
    each = zip(labels, most_probable(combined), predicted, strict=True)
    return [np.where((label == voted) & (voted != before), np.uint8(IGNORE), label) for label, voted, before in each]


def _votes(masks: Sequence[Mask], clusters: Sequence[npt.NDArray[np.uint8]], classes: int) -> npt.NDArray[np.float64]:
    """Pixels of each class in each cluster: (32, K)."""
    votes = np.full((_CLUSTERS, classes), _PRIOR_COUNT)
    for mask, cluster in zip(masks, clusters, strict=True):
        valid = mask < classes
        pairs = cluster[valid].astype(np.intp) * classes + mask[valid]
        votes += np.bincount(pairs, minlength=votes.size).reshape(votes.shape)
    return votes
