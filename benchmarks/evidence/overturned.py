"""What a candidate overturns of the predictions of which the model in production is confident.

Production is confident of a pixel where it is certain of its class, and predicts the same class in all augmented views.
An adaptation that corrects errors overturns few of these pixels, and those look like the class that they get.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["confident_pixels", "overturn_support", "overturned_share"]

_MIN_PROBABILITY = 0.9
_MIN_PIXELS = 30  # whose appearance is compared

Mask = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]


def confident_pixels(probabilities: npt.NDArray[np.float32], views: Sequence[Mask]) -> Flags:
    """Find the pixels of which a model is confident.

    Args:
        probabilities: Its class probabilities.
        views: Its segmentations of augmented views of the same image, mapped back.

    Shape:
        (K, H, W) and (H, W) each → (H, W)
    """
    predicted = probabilities.argmax(0)
    confident: Flags = probabilities.max(0) > _MIN_PROBABILITY
    for view in views:
        confident &= view == predicted
    return confident


def overturned_share(production: Mask, candidate: Mask, confident: Flags, classes: int) -> float:
    """Return the share of the confident pixels whose class the candidate changes, averaged over the classes.

    Args:
        production: Classes that the model in production predicts.
        candidate: Classes that the candidate predicts.
        confident: Whether production is confident.
        classes: Number of classes K.

    Shape:
        (N,) each

    Returns:
        0..1, mean over the classes of which production is confident anywhere; NaN if there is none.
    """
    shares = [
        float((candidate[chosen] != label).mean())
        for label in range(classes)
        if (chosen := confident & (production == label)).any()
    ]
    return float(np.mean(shares)) if shares else float("nan")


def overturn_support(production: Mask, candidate: Mask, scores: npt.NDArray[np.floating], label: int) -> float:
    """Say whether pixels that the candidate overturns look like the class that it gives them.

    Args:
        production: Classes that the model in production predicts.
        candidate: Classes that the candidate predicts.
        scores: How much each pixel looks like a class, by a classifier that no adaptation has changed.
        label: The class.

    Shape:
        (N,) each

    Returns:
        1 where overturned pixels score as those of the same class that both models agree on, 0 where they score as
        those of the class that they had, and 0.5 where the candidate overturns almost nothing; median over the pixels,
        mean over both directions, weighted by area.
    """
    old, new = production == label, candidate == label
    kept, rest = old & new, ~old & ~new
    if min(kept.sum(), rest.sum()) < _MIN_PIXELS:
        return 0.5
    high, low = float(np.median(scores[kept])), float(np.median(scores[rest]))
    parts, weights = [0.5], [1e-9]
    for overturned, origin, goal in ((new & ~old, low, high), (old & ~new, high, low)):
        if overturned.sum() >= _MIN_PIXELS and abs(goal - origin) > 1e-9:
            place = (float(np.median(scores[overturned])) - origin) / (goal - origin)
            parts.append(float(np.clip(place, 0.0, 1.0)))
            weights.append(float(overturned.sum()))
    return float(np.average(parts, weights=weights))
