"""The reference distribution of a model: the appearance of the images that it was trained on or adapted to.

Each lab is a Gaussian in a space of a few features per image. An image's out-of-distribution score is its Mahalanobis
distance to the nearest lab divided by that lab's limit, below which 99 of 100 new images of the lab are expected: above
1 the image is out of distribution.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from microseg.config.params import OutOfDistributionSettings
from microseg.errors import DataError

__all__ = [
    "MIN_REFERENCE_IMAGES",
    "LabDistribution",
    "OutOfDistributionSummary",
    "ReferenceDistribution",
    "fit_lab_distribution",
    "summarize_scores",
]

MIN_REFERENCE_IMAGES = 5
"""Smallest number of images from which a lab's distribution is fitted."""

_QUANTILE = 0.99  # of the distances of a lab's new images
_EMPIRICAL_QUANTILE_IMAGES = 200  # number of images from which the quantile is empirical
_FOLDS = 10
_OUTLIER = 4.0  # robust standard deviations at which values are clipped
_MIN_DEVIATION = 0.02  # of a feature, for labs whose images are all alike
_MIN_SHRINKAGE = 0.05  # keeps the covariance invertible
_KIND = "microseg reference distribution 1"

Features = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LabDistribution:
    """A Gaussian fitted to the features of a lab's images.

    Args:
        images: Number of images.
        center: Mean, (D,).
        covariance: Covariance, (D, D), positive definite.
        limit: Mahalanobis distance below which 99 of 100 new images of the lab are expected.
    """

    images: int
    center: Features
    covariance: Features
    limit: float

    def distances(self, features: Features) -> Features:
        """Return Mahalanobis distances: (N, D) → (N,)."""
        return _distances(features, self.center, self.covariance)


@dataclass(frozen=True, eq=False)
class ReferenceDistribution:
    """The distributions of all labs that a model was trained on or adapted to.

    Args:
        features: Names of the D features.
        labs: Distribution of each lab.
    """

    features: tuple[str, ...]
    labs: Mapping[str, LabDistribution]

    def ood_score(self, features: Features) -> Features:
        """Return the out-of-distribution score of images: the distance to the nearest lab over that lab's limit.

        Shape:
            (N, D) → (N,)

        Returns:
            0 or more, above 1 out of distribution; NaN if the distribution has no lab.
        """
        if not self.labs:
            return np.full(len(features), np.nan)
        nearest: Features = np.min([lab.distances(features) / lab.limit for lab in self.labs.values()], axis=0)
        return nearest

    def updated(self, other: "ReferenceDistribution") -> "ReferenceDistribution":
        """Return the distributions of the labs of both; those of ``other`` where both have one."""
        return ReferenceDistribution(other.features, {**self.labs, **other.labs})

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON values."""
        labs = {
            name: {field: np.asarray(value).tolist() for field, value in vars(lab).items()}
            for name, lab in self.labs.items()
        }
        return {"kind": _KIND, "features": list(self.features), "labs": labs}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ReferenceDistribution":
        """Restore from `to_dict`.

        Raises:
            DataError: The values are not those of a reference distribution.
        """
        kind = values.get("kind") if isinstance(values, Mapping) else type(values).__name__
        if kind != _KIND:
            raise DataError(f"Expected a record of kind {_KIND!r}, got {kind!r}: register the model again.")
        try:
            features, labs = tuple(map(str, values["features"])), {}
            for name, lab in values["labs"].items():
                center, covariance = (np.array(lab[field], np.float64) for field in ("center", "covariance"))
                shape = (len(features),)
                if (center.shape, covariance.shape) != (shape, 2 * shape):
                    raise ValueError(f"shapes {center.shape} and {covariance.shape} for {len(features)} features")
                if not (np.isfinite(center).all() and np.isfinite(covariance).all() and np.isfinite(lab["limit"])):
                    raise ValueError("values that are not finite")
                labs[str(name)] = LabDistribution(int(lab["images"]), center, covariance, float(lab["limit"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"Expected a reference distribution, got {error or error!r}: register the model again."
            ) from error
        return cls(features, labs)


@dataclass(frozen=True)
class OutOfDistributionSummary:
    """The out-of-distribution scores of several images.

    Args:
        images: Number of images with a score.
        out_of_distribution: Number of these whose score is above 1.
        share: Fraction of these, 0..1; about 0.01 for new images of a reference lab.
        median_score: Median score; NaN if there is none.
        exceeds_limits: Whether the share or the median exceeds the limits of `OutOfDistributionSettings`.
    """

    images: int
    out_of_distribution: int
    share: float
    median_score: float
    exceeds_limits: bool


def summarize_scores(
    scores: Sequence[float], policy: OutOfDistributionSettings | None = None
) -> OutOfDistributionSummary:
    """Summarize the out-of-distribution scores of images.

    Args:
        scores: See `ReferenceDistribution.ood_score`; NaN are left out.
        policy: The limits; None for the defaults.
    """
    policy = policy or OutOfDistributionSettings()
    known = np.array([value for value in scores if np.isfinite(value)])
    if not known.size:
        return OutOfDistributionSummary(0, 0, float("nan"), float("nan"), False)
    count = int((known > 1).sum())
    share, median = count / known.size, float(np.median(known))
    exceeds = (count > 1 and share > policy.max_share) or (known.size > 1 and median > policy.max_median_score)
    return OutOfDistributionSummary(known.size, count, share, median, exceeds)


def fit_lab_distribution(features: Features, groups: Sequence[str]) -> LabDistribution:
    """Fit the distribution of a lab's images, and the limit for new ones.

    The correlation is shrunk towards the identity (Ledoit-Wolf) after outliers were clipped. The limit is estimated by
    cross-validation over slides: from 200 images on the 99th percentile of the distances, else their upper 99 %
    prediction limit as a log-normal variable, which is the higher the fewer slides there are. A new image is assumed
    to come from a new slide.

    Args:
        features: Features of each image.
        groups: Slide or patient of each image; images of one are never in both the training and the test fold.

    Shape:
        (N, D) with N ≥ 5

    Reference:
        Ledoit & Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004.
    """
    assert len(features) == len(groups) >= MIN_REFERENCE_IMAGES
    numbers = np.unique(np.array(groups), return_inverse=True)[1]
    if numbers.max() + 1 < MIN_REFERENCE_IMAGES:  # too few slides for cross-validation
        numbers = np.arange(len(features))
    units = int(numbers.max()) + 1
    folds = numbers % min(_FOLDS, units)
    distances = np.empty(len(features))
    for fold in np.unique(folds):
        test = folds == fold
        distances[test] = _distances(features[test], *_gaussian(features[~test]))
    return LabDistribution(len(features), *_gaussian(features), max(1.0, _limit(distances, units)))


def _limit(distances: Features, units: int) -> float:
    from scipy.special import stdtrit  # many commands compute no limit

    if len(distances) >= _EMPIRICAL_QUANTILE_IMAGES:
        return float(np.quantile(distances, _QUANTILE, method="higher"))
    logarithms = _clip_outliers(np.log(np.maximum(distances, 1e-6)))
    factor = stdtrit(units - 1, _QUANTILE) * np.sqrt(1 + 1 / units)
    return float(np.exp(logarithms.mean() + factor * logarithms.std(ddof=1)))


def _gaussian(features: Features) -> tuple[Features, Features]:
    """Center (D,) and covariance (D, D) of features (N, D)."""
    from sklearn.covariance import ledoit_wolf_shrinkage

    features = _clip_outliers(features)
    center = features.mean(0)
    deviation = np.maximum(features.std(0, ddof=1), _MIN_DEVIATION)
    scaled = (features - center) / deviation  # (N, D)
    shrinkage = max(_MIN_SHRINKAGE, float(ledoit_wolf_shrinkage(scaled, assume_centered=True)))
    correlation = (1 - shrinkage) * scaled.T @ scaled / len(scaled)  # (D, D)
    np.fill_diagonal(correlation, 1.0)
    return center, correlation * np.outer(deviation, deviation)


def _clip_outliers(values: Features) -> Features:
    """Clip values, along the first axis, to the median ± 4 robust standard deviations."""
    median = np.median(values, axis=0)
    width = _OUTLIER * np.maximum(1.4826 * np.median(np.abs(values - median), axis=0), _MIN_DEVIATION)
    return np.clip(values, median - width, median + width)


def _distances(features: Features, center: Features, covariance: Features) -> Features:
    difference = features - center  # (N, D)
    squares: Features = (difference * np.linalg.solve(covariance, difference.T).T).sum(1)  # (N,)
    return np.sqrt(np.maximum(squares, 0.0))
