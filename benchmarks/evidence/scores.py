"""The scores of the study, and those of them that microseg itself does not measure."""

from types import MappingProxyType

import numpy as np
import numpy.typing as npt

__all__ = ["SCORES", "share_shift", "soft_neighborhood_density"]

SCORES = MappingProxyType(
    {
        "stain_explained_variance": 1,
        "augmentation_consistency": 1,
        "entropy": -1,
        "teacher_agreement": 1,
        "domain_separability": -1,
        "neighborhood_density": 1,
        "share_shift": -1,
        "source_dice": 1,
    }
)
"""Name → 1 where more should be better, −1 where less should. All but the Dice on the labelled lab need no label."""

_TEMPERATURE = 0.05


def soft_neighborhood_density(probabilities: npt.NDArray[np.float32]) -> float:
    """How densely pixels lie among others that are predicted alike: entropy of the similarities to all others.

    Args:
        probabilities: of a sample of pixels.

    Shape:
        (N, K)

    Returns:
        0..1, a share of the largest possible, log(N − 1). nan for fewer than three pixels, or where one is not finite.

    Reference:
        Saito et al., "Tune it the right way: unsupervised validation of domain adaptation via soft neighborhood
        density", ICCV 2021, with its temperature of 0.05.
    """
    if len(probabilities) < 3 or not np.isfinite(probabilities).all():
        return float("nan")
    unit = probabilities.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    similar = unit @ unit.T / _TEMPERATURE  # (N, N)
    np.fill_diagonal(similar, -np.inf)
    weights = np.exp(similar - similar.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    entropy = -(weights * np.log(weights + 1e-30)).sum(1).mean()
    return float(entropy / np.log(len(unit) - 1))


def share_shift(predicted: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]) -> float:
    """How much area changed class: the total variation between two sets of class shares.

    Args:
        predicted: of the new lab's area.
        expected: of the labelled lab's.

    Shape:
        (K,) each, which sum to one

    Returns:
        0 for equal shares, 1 where they have no class in common.
    """
    return float(np.abs(predicted - expected).sum() / 2)
