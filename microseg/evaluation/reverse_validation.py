"""Reverse validation: do the classes predicted on the target lab, learned from scratch, separate those of the source?

A classifier of features that no adaptation has changed is fitted to the labels that a model predicts on the target lab,
and evaluated on the masks of the source labs. Labels of something else, such as whole cells in place of nuclei, give a
classifier that does not separate the source's classes, even where the model is certain and consistent about them. The
measure is the area under the ROC curve, which depends neither on the class balance nor on an offset between labs.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "LabelledPixels",
    "forward_scores",
    "forward_validation",
    "linear_direction",
    "reverse_validation",
]

_SAMPLE = 2000  # pixels of each class and of the others that a classifier is fitted to
_MIN_PIXELS = 30  # of a class, below which there is no classifier of it
_SHRINKAGE = 0.1  # of the covariance towards a multiple of the identity

Features = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class LabelledPixels:
    """Pixels of a lab.

    Args:
        features: Their features, (N, D), of any scale: each is standardized within the lab.
        labels: Their class indices, (N,); 255 is ignored.
    """

    features: Features
    labels: npt.NDArray[np.uint8]


def reverse_validation(source: LabelledPixels, target: LabelledPixels, classes: int) -> float:
    """Evaluate classifiers that are fitted to the labels of the target on those of the source.

    Args:
        source: Pixels with their true classes.
        target: Pixels with the classes that a model predicts.
        classes: Number of classes K.

    Returns:
        Area under the ROC curve, 0..1, mean over the foreground classes that the source has: 1 if the predicted classes
        separate the source's, 0.5 if they do not, which is also that of a class that is not predicted. NaN if the
        source has none.

    Reference:
        Zhong et al., "Cross validation framework to choose amongst models and datasets for transfer learning", ECML
        PKDD 2010; Ganin & Lempitsky, "Unsupervised domain adaptation by backpropagation", ICML 2015.
    Deviation:
        The classifier is linear, of fixed features, in place of a second network.
    """
    return _validate(fitted=target, evaluated=source, classes=classes, known=source)


def forward_validation(source: LabelledPixels, target: LabelledPixels, classes: int) -> float:
    """Evaluate classifiers that are fitted to the labels of the source on those of the target.

    It sees objects of another kind that are marked too, which leave the direction of `reverse_validation` unchanged.
    Arguments and result are those of that function.
    """
    return _validate(fitted=source, evaluated=target, classes=classes, known=source)


def forward_scores(source: LabelledPixels, target: Features, label: int) -> npt.NDArray[np.float64] | None:
    """Say how much pixels of the target look like a class of the source.

    Args:
        source: Pixels with their true classes.
        target: Features of the target's pixels.
        label: The class.

    Shape:
        (N, D) → (N,)

    Returns:
        Scores of a linear classifier; None if the source has too few pixels of the class.
    """
    x, labels = _standardized(source)
    chosen = _sample(labels == label)
    if chosen is None:
        return None
    other = _standardized(LabelledPixels(target, np.zeros(len(target), np.uint8)))[0]
    return np.asarray(other @ linear_direction(x[chosen], labels[chosen] == label), np.float64)


def _validate(*, fitted: LabelledPixels, evaluated: LabelledPixels, classes: int, known: LabelledPixels) -> float:
    from sklearn.metrics import roc_auc_score

    (x, labels), (other, true) = _standardized(fitted), _standardized(evaluated)
    areas = []
    for label in range(1, classes):
        if (known.labels == label).sum() < _MIN_PIXELS:
            continue
        train, test = _sample(labels == label), _sample(true == label)
        if train is None or test is None:
            areas.append(0.5)
            continue
        direction = linear_direction(x[train], labels[train] == label)
        areas.append(roc_auc_score(true[test] == label, other[test] @ direction))
    return float(np.mean(areas)) if areas else float("nan")


def linear_direction(features: Features, positive: Flags) -> npt.NDArray[np.float64]:
    """Fit Fisher's linear discriminant of two classes of the same weight.

    Args:
        features: Features.
        positive: Whether each pixel is of the class.

    Shape:
        (N, D) and (N,) → (D,)
    """
    one, rest = features[positive].astype(np.float64), features[~positive].astype(np.float64)
    covariance = (np.cov(one.T) + np.cov(rest.T)) / 2  # (D, D)
    size = len(covariance)
    covariance += (_SHRINKAGE * np.trace(covariance) / size + 1e-9) * np.eye(size)
    direction: npt.NDArray[np.float64] = np.linalg.solve(covariance, one.mean(0) - rest.mean(0))
    return direction


def _standardized(pixels: LabelledPixels) -> tuple[Features, npt.NDArray[np.uint8]]:
    """Features of zero mean and unit variance, and labels, without the ignored pixels."""
    counted = pixels.labels != 255
    x = pixels.features[counted]
    return (x - x.mean(0)) / (x.std(0) + 1e-6), pixels.labels[counted]


def _sample(positive: Flags) -> npt.NDArray[np.intp] | None:
    """Indices of random pixels of a class and of the others; None if one has almost none."""
    rng, chosen = np.random.default_rng(0), []
    for indices in (np.flatnonzero(positive), np.flatnonzero(~positive)):
        if len(indices) < _MIN_PIXELS:
            return None
        chosen.append(rng.choice(indices, min(_SAMPLE, len(indices)), replace=False))
    return np.concatenate(chosen)
