"""The scores of the study, and those that microseg does not measure."""

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
        "reverse_validation": 1,
        "forward_validation": 1,
        "reverse_validation_encoder_0": 1,
        "reverse_validation_encoder_1": 1,
        "reverse_validation_decoder": 1,
        "forward_validation_encoder_0": 1,
        "forward_validation_encoder_1": 1,
        "forward_validation_decoder": 1,
        "disturbance_consistency": 1,
        "object_size_shift": -1,
        "object_size_change": -1,
        "overturned_share": -1,
        "overturn_support": 1,
        "label_shift_distance": -1,
        "own_label_shift_distance": -1,
        "log_foreground_ratio": -1,
        "log_foreground_change": -1,
        "neighborhood_density": 1,
        "share_shift": -1,
        "source_dice": 1,
    }
)
"""Name → 1 if higher is better, −1 if lower is better. All but the Dice on the source lab need no labels."""

_TEMPERATURE = 0.05


def soft_neighborhood_density(probabilities: npt.NDArray[np.float32]) -> float:
    """Soft neighborhood density: the entropy of a pixel's similarities to all others, by their predictions.

    Args:
        probabilities: Class probabilities of a sample of pixels.

    Shape:
        (N, K)

    Returns:
        0..1, relative to the maximum log(N − 1); NaN for fewer than three pixels, or if one is not finite.

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
    """Total variation distance of two class distributions.

    Args:
        predicted: Area fractions of the classes on the target lab.
        expected: Area fractions in the masks of the source lab.

    Shape:
        (K,) each, which sum to one

    Returns:
        0 for equal fractions, 1 if they have no class in common.
    """
    return float(np.abs(predicted - expected).sum() / 2)
