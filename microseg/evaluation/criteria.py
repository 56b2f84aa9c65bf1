"""Measures of a segmentation that need no reference mask."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.stats import rankdata

from microseg.errors import DataError
from microseg.evaluation.overlap import confusion_matrix

__all__ = [
    "class_shares",
    "cohen_kappa",
    "domain_separability",
    "prediction_entropy",
    "stain_explained_variance",
]

_FOLDS = 4
_RIDGE = 1e-2
_SMOOTHING = 3.0  # pixels
_SEPARATION_RIDGE = 1e-3


def prediction_entropy(probabilities: npt.NDArray[np.float32]) -> float:
    """Mean entropy of the class probabilities, as a share of the largest possible one.

    Args:
        probabilities: sums to one over the classes.

    Shape:
        (K, H, W)

    Returns:
        0 where every pixel is certain, 1 where all classes are equally probable everywhere.
    """
    p = probabilities.astype(np.float64)
    return float(-(p * np.log(p + 1e-12)).sum(0).mean() / np.log(len(p)))


def cohen_kappa(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8], classes: int) -> float:
    """How far two segmentations of the same image agree beyond chance: Cohen's kappa over the pixels.

    A segmentation that marks nearly everything agrees with another such one nearly everywhere; kappa takes that away.

    Args:
        first: class indices.
        second: class indices.
        classes: number of classes K.

    Shape:
        (H, W) each

    Returns:
        1 for equal segmentations, 0 for no agreement beyond chance, or less than that; nan where both are of one class
        throughout, which says nothing.

    Reference:
        Cohen 1960, "A coefficient of agreement for nominal scales".
    """
    shares = confusion_matrix(first, second, classes) / first.size  # (K, K)
    observed, by_chance = float(np.trace(shares)), float(shares.sum(0) @ shares.sum(1))
    return max(0.0, (observed - by_chance) / (1 - by_chance)) if by_chance < 1 - 1e-9 else float("nan")


def class_shares(mask: npt.NDArray[np.uint8], classes: int) -> npt.NDArray[np.float64]:
    """Share of the area of each class; ignored pixels (255) count for none.

    Args:
        mask: class indices.
        classes: number of classes K.

    Shape:
        (H, W) → (K,)

    Returns:
        0..1, which sum to one; nan where every pixel is ignored.
    """
    counts = np.bincount(mask.ravel(), minlength=256)[:classes].astype(np.float64)
    shares: npt.NDArray[np.float64] = counts / (float(counts.sum()) or float("nan"))
    return shares


def stain_explained_variance(image: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8], classes: int) -> float:
    """How distinct the segmented classes look: the share of the mask that a linear function of the stain explains.

    It asks nothing of the network that made the mask: tissue compartments take up stain differently, so a mask that
    follows them is explained better than one that does not. Optical density in each channel, as it is and smoothed,
    and the same as ranks, so that a few very dark pixels do not decide alone; the mean of both.

    Args:
        image: RGB.
        mask: class indices; 255 where a pixel is not to be counted.
        classes: number of classes K.

    Shape:
        (H, W, 3) and (H, W)

    Returns:
        R² of the linear regression of the classes' indicators, 0..1; 0 where the mask is of one class throughout.

    Reference:
        Multivariate form of Fisher's correlation ratio.
    """
    density = -np.log((image.astype(np.float32) + 1) / 256)  # (H, W, 3)
    smooth = ndimage.gaussian_filter(density, (_SMOOTHING, _SMOOTHING, 0))
    counted = mask < classes
    if not counted.any():
        return 0.0
    features = np.concatenate([density, smooth], axis=2)[counted].astype(np.float64)  # (N, 6)
    ranks = rankdata(features, axis=0)  # (N, 6), equal values alike
    indicators = (mask[counted][:, None] == np.arange(classes)).astype(np.float64)  # (N, K)
    return 0.5 * (_explained(features, indicators) + _explained(ranks, indicators))


def _explained(features: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]) -> float:
    """R² of a ridge regression: (N, D) and (N, K)."""
    x = (features - features.mean(0)) / (features.std(0) + 1e-6)
    y = wanted - wanted.mean(0)
    total = float((y**2).sum())
    if total < 1e-9:
        return 0.0
    weights = np.linalg.solve(x.T @ x + _SEPARATION_RIDGE * len(x) * np.eye(x.shape[1]), x.T @ y)  # (D, K)
    return max(0.0, 1 - float(((y - x @ weights) ** 2).sum()) / total)


def domain_separability(
    source: npt.NDArray[np.float32],
    target: npt.NDArray[np.float32],
    slides: tuple[Sequence[str], Sequence[str]] | None = None,
) -> float:
    """How well a linear classifier tells two labs apart by their features: its cross-validated area under the ROC
    curve.

    Args:
        source: features of one lab's images.
        target: features of the other's.
        slides: the slide or patient of each of the N and of the M images. Images of one are never on both sides of
            a fold, unless a lab has only one.

    Shape:
        (N, D) and (M, D)

    Returns:
        About 0.5 when the labs look the same to the network, 1 when each image gives its lab away.

    Raises:
        DataError: when a lab has fewer than two images.

    Reference:
        The proxy A-distance of Ben-David et al. 2007, with a ridge classifier in its dual form (N + M is small beside
        D).
    """
    if len(source) < 2 or len(target) < 2:
        raise DataError(f"Expected at least two images of each lab, got {len(source)} and {len(target)}: give more.")
    x = np.concatenate([source, target]).astype(np.float64)  # (N + M, D)
    y = np.repeat([-1.0, 1.0], [len(source), len(target)])
    groups = [
        np.arange(len(features)) if slides is None or len(set(slides[lab])) < 2 else _numbered(slides[lab])
        for lab, features in enumerate((source, target))
    ]
    folds = np.concatenate(groups) % min(_FOLDS, *(int(it.max()) + 1 for it in groups))
    areas = []
    for fold in range(int(folds.max()) + 1):
        train, test = folds != fold, folds == fold
        mean, scale = x[train].mean(0), _spread(x[train & (y < 0)], x[train & (y > 0)])
        a, b = (x[train] - mean) / scale, (x[test] - mean) / scale
        kernel = a @ a.T / a.shape[1]  # (n, n)
        weights = np.where(y[train] < 0, 0.5 / (y[train] < 0).sum(), 0.5 / (y[train] > 0).sum()) * len(a)
        alpha = np.linalg.solve(kernel + _RIDGE * np.diag(1 / weights), y[train])
        scores = b @ a.T @ alpha / a.shape[1]
        areas.append(_area_under_curve(scores[y[test] < 0], scores[y[test] > 0]))
    return float(np.mean(areas))


def _numbered(slides: Sequence[str]) -> npt.NDArray[np.intp]:
    return np.unique(np.asarray(slides), return_inverse=True)[1]


def _spread(low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of each feature within the labs, so that one that tells them apart is not drowned by the others. (D,)."""
    within = np.concatenate([low - low.mean(0), high - high.mean(0)]).std(0)  # (D,)
    overall = np.concatenate([low, high]).std(0)  # (D,)
    spread: npt.NDArray[np.float64] = within + 1e-2 * overall + 1e-6
    return spread


def _area_under_curve(low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]) -> float:
    difference = high[:, None] - low[None, :]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())
