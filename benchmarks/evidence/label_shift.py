"""Class balance of a target lab, estimated without its labels."""

import numpy as np
import numpy.typing as npt

__all__ = ["estimated_shares"]

_ROUNDS = 100
_TOLERANCE = 1e-5


def estimated_shares(
    probabilities: npt.NDArray[np.float32], source_shares: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Estimate the class shares of a lab from the probabilities that a model of other labs predicts.

    It assumes that only the class balance differs between the labs, not how a class looks, and that the probabilities
    are calibrated on the source labs.

    Args:
        probabilities: Class probabilities of a sample of pixels.
        source_shares: Area fraction of each class in the labs that the model was trained on.

    Shape:
        (N, K) and (K,) → (K,)

    Returns:
        Area fraction of each class, which sum to one.

    Reference:
        Saerens et al., "Adjusting the outputs of a classifier to new a priori probabilities: a simple procedure",
        Neural Computation 2002: expectation maximization.
    """
    ratio = probabilities.astype(np.float64) / np.maximum(source_shares, 1e-6)  # (N, K)
    shares: npt.NDArray[np.float64] = np.maximum(source_shares, 1e-6) / np.maximum(source_shares, 1e-6).sum()
    for _ in range(_ROUNDS):
        joint = ratio * shares
        updated: npt.NDArray[np.float64] = (joint / np.maximum(joint.sum(1, keepdims=True), 1e-12)).mean(0)
        if np.abs(updated - shares).max() < _TOLERANCE:
            return updated
        shares = updated
    return shares
