"""Features of pixels that no network computes, and that therefore no training or adaptation can bias.

They are responses of derivative filters at several scales, as in interactive pixel classification.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from microseg.slides.modality import Modality

__all__ = ["PIXEL_STRIDE", "pixel_features"]

PIXEL_STRIDE = 4
"""Pixels between those whose features are computed, along rows and columns."""

_SCALES = (1.0, 2.0, 4.0, 8.0)  # pixels
_WINDOW = 1.5  # of the local deviation, relative to the scale

Image = npt.NDArray[np.uint8]


def pixel_features(image: Image, modality: Modality) -> npt.NDArray[np.float32]:
    """Compute the features of every fourth pixel along rows and columns.

    At each of four scales: the smoothed value, the gradient's magnitude, both eigenvalues of the Hessian, and the local
    standard deviation; of the optical density of each channel where colors are stains, else of the intensity.

    Args:
        image: RGB, 0..255, at the model's scale.
        modality: What the image is.

    Shape:
        (H, W, 3) → (⌈H/4⌉, ⌈W/4⌉, D)

    Reference:
        Berg et al., "ilastik: interactive machine learning for (bio)image analysis", Nature Methods 2019.
    """
    values = image.astype(np.float32)
    if modality.has_stain_colors:
        channels: Sequence[npt.NDArray[np.float32]] = list(np.moveaxis(-np.log((values + 1) / 256), 2, 0))
    else:
        channels = [values.mean(2)]
    responses = [each for channel in channels for scale in _SCALES for each in _responses(channel, scale)]
    return np.stack(responses, axis=2, dtype=np.float32)


def _responses(channel: npt.NDArray[np.float32], scale: float) -> list[npt.NDArray[np.floating]]:
    smooth = ndimage.gaussian_filter(channel, scale)
    down, right = _derivatives(smooth)
    (down_down, _), (right_down, right_right) = _derivatives(down), _derivatives(right)
    half_trace = (down_down + right_right) / 2
    spread = np.sqrt((down_down - right_right) ** 2 / 4 + right_down**2)
    mean, square = (ndimage.gaussian_filter(it, _WINDOW * scale) for it in (channel, channel**2))
    deviation = np.sqrt(np.maximum(square - mean**2, 0.0))
    every = (smooth, np.hypot(down, right), half_trace + spread, half_trace - spread, deviation)
    return [each[::PIXEL_STRIDE, ::PIXEL_STRIDE] for each in every]


def _derivatives(values: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Central differences along rows and columns; 0 along an axis of one pixel."""
    down, right = (
        np.gradient(values, axis=axis) if values.shape[axis] > 1 else np.zeros_like(values) for axis in (0, 1)
    )
    return down, right
