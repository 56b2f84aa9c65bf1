"""How far images lie from those that a model knows, with a limit calibrated on the known ones themselves.

Each known lab is a Gaussian in a space of a few figures an image. An image's drift is its Mahalanobis distance to the
nearest lab over that lab's limit, below which 99 of 100 new images of the lab itself are expected to lie: above 1 it is
unlike anything known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

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
"""Images of a lab that are needed to tell how far its own images lie apart."""

_INSIDE = 0.99  # of a known lab's own new images
_MANY = 200  # images from which on the quantile is read off
_FOLDS = 10
_OUTLIER = 4.0  # robust standard deviations; what lies beyond counts as lying there
_LEAST_DEVIATION = 0.02  # of a figure: labs whose images are all alike are not known that well
_KIND = "microseg known images 1"

Figures = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LabDistribution:
    """A lab's images as a Gaussian.

    Attributes:
        images: that it was learnt from.
        center: (D,)
        covariance: (D, D), positive definite.
        limit: distance below which 99 of 100 of the lab's own new images are expected.
    """

    images: int
    center: Figures
    covariance: Figures
    limit: float

    def distances(self, figures: Figures) -> Figures:
        """Mahalanobis distances: (N, D) → (N,)."""
        return _distances(figures, self.center, self.covariance)


@dataclass(frozen=True, eq=False)
class ReferenceDistribution:
    """All that a model knows.

    Attributes:
        figures: names of the D figures of an image.
        labs: by name.
    """

    figures: tuple[str, ...]
    labs: Mapping[str, LabDistribution]

    def ood_score(self, figures: Figures) -> Figures:
        """Distance to the nearest lab over that lab's limit; above 1 an image is unlike anything known.

        Shape:
            (N, D) → (N,)

        Returns:
            The drift of each image; nan where nothing is known.
        """
        if not self.labs:
            return np.full(len(figures), np.nan)
        nearest: Figures = np.min([lab.distances(figures) / lab.limit for lab in self.labs.values()], axis=0)
        return nearest

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        labs = {
            name: {
                "images": lab.images,
                "limit": lab.limit,
                "center": lab.center.tolist(),
                "covariance": lab.covariance.tolist(),
            }
            for name, lab in self.labs.items()
        }
        return {"kind": _KIND, "figures": list(self.figures), "labs": labs}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ReferenceDistribution":
        """Back from `to_dict`.

        Raises:
            DataError: it is no such record.
        """
        if values.get("kind") != _KIND:
            raise DataError(
                f"Expected a record of kind {_KIND!r}, got {values.get('kind')!r}: register the model anew."
            )
        labs = {
            name: LabDistribution(lab["images"], np.array(lab["center"]), np.array(lab["covariance"]), lab["limit"])
            for name, lab in values["labs"].items()
        }
        return cls(tuple(values["figures"]), labs)


@dataclass(frozen=True)
class OutOfDistributionSummary:
    """How far a lab's images, or those of a batch, lie from what is known.

    Attributes:
        images: that could be compared.
        unlike: of them, those that are unlike anything known.
        share: these, 0..1; about 0.01 for a known lab.
        median: of their drifts; nan where there are none. 1 is the limit.
        drifted: whether that is more than is allowed.
    """

    images: int
    ood_images: int
    share: float
    median: float
    is_ood: bool

    def __str__(self) -> str:
        if not self.images:
            return "not compared with known images"
        return f"{self.ood_images} of {self.images} unlike any known lab; median {self.median:.2f} of the limit"


def summarize_scores(
    scores: Sequence[float], policy: OutOfDistributionSettings | None = None
) -> OutOfDistributionSummary:
    """Sum up the drifts of images; nan are left out.

    Args:
        scores: of `ReferenceDistribution.drift`.
        policy: when they have drifted; the defaults where None.
    """
    policy = policy or OutOfDistributionSettings()
    reference = np.array([ood_score for ood_score in scores if np.isfinite(ood_score)])
    if not reference.size:
        return OutOfDistributionSummary(0, 0, float("nan"), float("nan"), False)
    ood_images = int((reference > 1).sum())
    share = ood_images / reference.size
    median = float(np.median(reference))
    far = (ood_images > 1 and share > policy.max_share) or (reference.size > 1 and median > policy.max_median_score)
    return OutOfDistributionSummary(reference.size, ood_images, share, median, far)


def fit_lab_distribution(figures: Figures, groups: Sequence[str]) -> LabDistribution:
    """Learn a lab's images, and how far new ones of it lie from those.

    The covariance is shrunk towards independent figures (Ledoit-Wolf); single outliers are drawn in first. The limit
    comes from distances of images to what was learnt without them: of a lab with 200 images or more their 99th
    percentile, else the upper 99 % prediction limit of a new one's distance, whose logarithm is taken as normal: the
    fewer slides, the higher. A new image is thought of as from a new slide.

    Args:
        figures: of each image.
        groups: slide or patient of each; images of one are never learnt from to judge another.

    Shape:
        (N, D) with N ≥ 5

    Reference:
        Ledoit & Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004.
    """
    assert len(figures) == len(groups) >= MIN_REFERENCE_IMAGES
    numbers = np.unique(np.array(groups), return_inverse=True)[1]
    if numbers.max() + 1 < MIN_REFERENCE_IMAGES:  # too few slides to leave some out
        numbers = np.arange(len(figures))
    units = int(numbers.max()) + 1
    folds = numbers % min(_FOLDS, units)
    apart = np.empty(len(figures))
    for fold in np.unique(folds):
        left_out = folds == fold
        apart[left_out] = _distances(figures[left_out], *_gaussian(figures[~left_out]))
    return LabDistribution(len(figures), *_gaussian(figures), max(1.0, _limit(apart, units)))


def _limit(apart: Figures, units: int) -> float:
    if len(apart) >= _MANY:
        return float(np.quantile(apart, _INSIDE, method="higher"))
    logarithms = _draw_in(np.log(np.maximum(apart, 1e-6)))
    reach = stdtrit(units - 1, _INSIDE) * np.sqrt(1 + 1 / units)
    return float(np.exp(logarithms.mean() + reach * logarithms.std(ddof=1)))


def _gaussian(figures: Figures) -> tuple[Figures, Figures]:
    """Center (D,) and covariance (D, D) of figures (N, D)."""
    figures = _draw_in(figures)
    center = figures.mean(0)
    deviation = np.maximum(figures.std(0, ddof=1), _LEAST_DEVIATION)
    scaled = (figures - center) / deviation  # (N, D)
    correlation = scaled.T @ scaled / len(scaled)  # (D, D)
    np.fill_diagonal(correlation, 1.0)
    shrunk = _shrink(scaled, correlation)
    return center, shrunk * np.outer(deviation, deviation)


def _draw_in(values: Figures) -> Figures:
    """Put outliers, along the first axis, to where they begin."""
    middle = np.median(values, axis=0)
    reach = _OUTLIER * np.maximum(1.4826 * np.median(np.abs(values - middle), axis=0), _LEAST_DEVIATION)
    return np.clip(values, middle - reach, middle + reach)


def _shrink(scaled: Figures, correlation: Figures) -> Figures:
    """Ledoit and Wolf's estimate, towards the identity."""
    number, size = scaled.shape
    off = float(((correlation - np.eye(size)) ** 2).sum())
    noise = float(((scaled**2).sum(1) ** 2).sum() / number - (correlation**2).sum()) / number
    weight = 1.0 if off == 0 else float(np.clip(noise / off, 0.05, 1.0))  # never quite 0: it has to be invertible
    return (1 - weight) * correlation + weight * np.eye(size)


def _distances(figures: Figures, center: Figures, covariance: Figures) -> Figures:
    apart = figures - center  # (N, D)
    squares: Figures = (apart * np.linalg.solve(covariance, apart.T).T).sum(1)  # (N,)
    return np.sqrt(np.maximum(squares, 0.0))
