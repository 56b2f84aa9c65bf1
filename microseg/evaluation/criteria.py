"""Label-free criteria: measurements of a segmentation without reference mask."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.stats import rankdata

from microseg.errors import DataError
from microseg.evaluation.overlap import confusion_matrix
from microseg.slides.modality import Modality

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
_SAMPLE = 2**18  # pixels of an image that the explained variance is computed of
_ROWS = 256  # of an image that are processed at once
_STAIN_RIDGE = 1e-3


def prediction_entropy(probabilities: npt.NDArray[np.float32]) -> float:
    """Return the mean entropy of the class probabilities, relative to the maximum.

    Args:
        probabilities: Class probabilities.

    Shape:
        (K, H, W)

    Returns:
        0 if every pixel is certain, 1 if all classes are equally probable everywhere.
    """
    total = 0.0
    for top in range(0, probabilities.shape[1], _ROWS):
        p = probabilities[:, top : top + _ROWS].astype(np.float64)
        total -= float((p * np.log(p + 1e-12)).sum())
    return float(total / probabilities[0].size / np.log(len(probabilities)))


def cohen_kappa(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8], classes: int) -> float:
    """Return Cohen's kappa of two segmentations of the same image: their agreement beyond chance.

    Two segmentations of almost only foreground agree almost everywhere; kappa corrects for that.

    Args:
        first: Class indices.
        second: Class indices.
        classes: Number of classes K.

    Shape:
        (H, W) each

    Returns:
        1 for equal segmentations, 0 for no agreement beyond chance; NaN if both have the same single class.

    Reference:
        Cohen 1960, "A coefficient of agreement for nominal scales".
    """
    shares = confusion_matrix(first, second, classes) / first.size  # (K, K)
    observed, by_chance = float(np.trace(shares)), float(shares.sum(0) @ shares.sum(1))
    return max(0.0, (observed - by_chance) / (1 - by_chance)) if by_chance < 1 - 1e-9 else float("nan")


def class_shares(mask: npt.NDArray[np.uint8], classes: int) -> npt.NDArray[np.float64]:
    """Return the area fraction of each class; ignored pixels (255) are not counted.

    Args:
        mask: Class indices.
        classes: Number of classes K.

    Shape:
        (H, W) → (K,)

    Returns:
        0..1, which sum to one; NaN if every pixel is ignored.
    """
    counts = np.bincount(mask.ravel(), minlength=256)[:classes].astype(np.float64)
    shares: npt.NDArray[np.float64] = counts / (float(counts.sum()) or float("nan"))
    return shares


def stain_explained_variance(
    image: npt.NDArray[np.uint8],
    mask: npt.NDArray[np.uint8],
    classes: int,
    modality: Modality = Modality.STAINED,
) -> float:
    """Return the fraction of the mask's variance that is explained by a linear function of the stain.

    Tissue compartments take up stain differently, so a mask that follows them is explained better than one that does
    not. It is computed of at most 262,144 pixels, spread evenly. The features are the optical density of each channel,
    unchanged and smoothed. Gray and fluorescent images have no stain: there, the features are the intensity, unchanged
    and smoothed, and its local standard deviation. The result is the mean of two regressions: on these values, and on
    their ranks, which are robust to a few very dark pixels.

    Args:
        image: RGB image.
        mask: Class indices; 255 is ignored.
        classes: Number of classes K.
        modality: What the image is.

    Shape:
        (H, W, 3) and (H, W)

    Returns:
        R² of the linear regression of the class indicators, 0..1; 0 if the mask has a single class.

    Reference:
        Multivariate form of Fisher's correlation ratio.
    """
    counted = mask < classes
    if not counted.any():
        return 0.0
    where = np.flatnonzero(counted)
    if len(where) > _SAMPLE:
        where = where[np.linspace(0, len(where) - 1, _SAMPLE).astype(np.int64)]
    appearance = _appearance(image, modality)
    features = appearance.reshape(-1, appearance.shape[2])[where].astype(np.float64)  # (N, D)
    del appearance
    ranks = rankdata(features, axis=0)  # (N, D)
    indicators = (mask.ravel()[where][:, None] == np.arange(classes)).astype(np.float64)  # (N, K)
    return 0.5 * (_explained(features, indicators) + _explained(ranks, indicators))


def _appearance(image: npt.NDArray[np.uint8], modality: Modality) -> npt.NDArray[np.float32]:
    """Features of each pixel: (H, W, 3) → (H, W, D)."""
    if modality.has_stain_colors:
        density = -np.log((image.astype(np.float32) + 1) / 256)  # (H, W, 3)
        return np.concatenate([density, ndimage.gaussian_filter(density, (_SMOOTHING, _SMOOTHING, 0))], axis=2)
    gray = image.mean(2, dtype=np.float32)  # (H, W)
    smooth, square = (ndimage.gaussian_filter(it, _SMOOTHING) for it in (gray, gray**2))
    return np.stack([gray, smooth, np.sqrt(np.maximum(square - smooth**2, 0.0))], axis=2)


def _explained(features: npt.NDArray[np.float64], indicators: npt.NDArray[np.float64]) -> float:
    """R² of a ridge regression: (N, D) and (N, K)."""
    x = (features - features.mean(0)) / (features.std(0) + 1e-6)
    y = indicators - indicators.mean(0)
    total = float((y**2).sum())
    if total < 1e-9:
        return 0.0
    weights = np.linalg.solve(x.T @ x + _STAIN_RIDGE * len(x) * np.eye(x.shape[1]), x.T @ y)  # (D, K)
    return max(0.0, 1 - float(((y - x @ weights) ** 2).sum()) / total)


def domain_separability(
    source: npt.NDArray[np.float32],
    target: npt.NDArray[np.float32],
    slides: tuple[Sequence[str], Sequence[str]] | None = None,
) -> float:
    """Return the cross-validated area under the ROC curve of a linear classifier of two labs by their features.

    Args:
        source: Features of the images of one lab.
        target: Features of the images of the other lab.
        slides: Slide or patient of each of the N and of the M images. Images of one are never in both the training and
            the test fold, unless a lab has only one.

    Shape:
        (N, D) and (M, D)

    Returns:
        About 0.5 if the features of both labs have the same distribution, 1 if they are separable.

    Raises:
        DataError: A lab has fewer than two images.

    Reference:
        Ben-David et al. 2007, proxy A-distance; with a ridge classifier in its dual form, as N + M is smaller than D.
    """
    from sklearn.metrics import roc_auc_score

    if len(source) < 2 or len(target) < 2:
        raise DataError(f"Expected at least two images of each lab, got {len(source)} and {len(target)}: give more.")
    x = np.concatenate([source, target]).astype(np.float64)  # (N + M, D)
    y = np.repeat([-1.0, 1.0], [len(source), len(target)])
    groups = [
        np.arange(len(features)) if slides is None or len(set(slides[lab])) < 2 else _indices(slides[lab])
        for lab, features in enumerate((source, target))
    ]
    folds = np.concatenate(groups) % min(_FOLDS, *(int(it.max()) + 1 for it in groups))
    areas = []
    for fold in range(int(folds.max()) + 1):
        train, test = folds != fold, folds == fold
        mean, scale = x[train].mean(0), _scale(x[train & (y < 0)], x[train & (y > 0)])
        a, b = (x[train] - mean) / scale, (x[test] - mean) / scale
        kernel = a @ a.T / a.shape[1]  # (n, n)
        weights = np.where(y[train] < 0, 0.5 / (y[train] < 0).sum(), 0.5 / (y[train] > 0).sum()) * len(a)
        alpha = np.linalg.solve(kernel + _RIDGE * np.diag(1 / weights), y[train])
        areas.append(roc_auc_score(y[test], b @ a.T @ alpha / a.shape[1]))
    return float(np.mean(areas))


def _indices(slides: Sequence[str]) -> npt.NDArray[np.intp]:
    return np.unique(np.asarray(slides), return_inverse=True)[1]


def _scale(low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Standard deviation of each feature within the labs, so that the difference between labs does not count, (D,)."""
    within = np.concatenate([low - low.mean(0), high - high.mean(0)]).std(0)  # (D,)
    overall = np.concatenate([low, high]).std(0)  # (D,)
    scale: npt.NDArray[np.float64] = within + 1e-2 * overall + 1e-6
    return scale
