"""What the network says about an image, as far as outputs need it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from microseg.outputs.image_summary import ConfidenceSums

__all__ = ["Prediction"]


@dataclass(frozen=True)
class Prediction:
    """Classes of an image's pixels, and how certain the network is.

    Attributes:
        mask: Class indices.
        confidence: Probability of each pixel's class, in 255ths.
        interior: How far each pixel lies inside its object, in 255ths; None where objects are not separated.
        sums: Sums over all pixels.
        probabilities: Probabilities of all classes, where they were asked for.

    Shape:
        mask, confidence and interior (H, W), probabilities (K, H, W)
    """

    mask: npt.NDArray[np.uint8]
    confidence: npt.NDArray[np.uint8]
    interior: npt.NDArray[np.uint8] | None
    sums: ConfidenceSums
    probabilities: npt.NDArray[np.float32] | None = None
