"""Appearance features of an image: its stain in optical density, and its texture at the model's scale.

They need no network and take a few milliseconds. They are compared with those of the images that a model was trained
on, to detect images that are out of distribution.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["APPEARANCE_FEATURES", "image_features", "window_features"]

_SIDE = 256  # pixels of a window at the model's scale
_POSITIONS = (0.25, 0.75)  # of the windows, as fractions of the free range
_MIN_INTENSITY = 1 / 256  # so that black has a finite density
_GLASS_DENSITY = 0.15  # optical density below which a pixel is no tissue
_MIN_TISSUE = 0.02  # fraction of the pixels
_NOISE_DENSITY = 0.02  # added before taking logarithms: smaller densities are noise of the camera
_HIGH_QUANTILE = 0.95
_STRIDE = 2  # pixels between those whose color is used
_LAGS = (1, 2, 4)  # pixels
_CHANNELS = ("red", "green", "blue")
_PAIRS = ((0, 1), (0, 2), (1, 2))

_STATISTICS = ("mean", "std", "p95")

APPEARANCE_FEATURES = (
    *(f"{statistic}_{part}" for statistic in _STATISTICS for part in ("density", "red_to_green", "blue_to_green")),
    *(f"correlation_{_CHANNELS[one]}_{_CHANNELS[other]}" for one, other in _PAIRS),
    *(f"texture_{lag}" for lag in _LAGS),
)
"""Names of the features."""

Pixels = npt.NDArray[np.uint8]


def image_features(image: Pixels, zoom: float = 1.0) -> npt.NDArray[np.float64] | None:
    """Compute the appearance features of an image (H, W, 3), from up to four windows of it; see `window_features`.

    Args:
        image: RGB, 0..255.
        zoom: Factor by which the image is enlarged to the model's scale.
    """
    return window_features(_windows(image, zoom))


def window_features(windows: Sequence[Pixels]) -> npt.NDArray[np.float64] | None:
    """Compute the appearance features of an image from windows of it at the model's scale.

    Color features are the mean, the standard deviation and the 95th percentile of the optical density (natural
    logarithm) of tissue pixels: of each the logarithm averaged over the channels, and the logarithms of red and of blue
    relative to green, which depend on the stain but not on its amount; and Fisher's z of the correlations between
    channels. Texture features are the mean absolute change of the density over 1, 2 and 4 pixels relative to its
    standard deviation: they depend on sharpness, compression and magnification.

    Args:
        windows: RGB, 0..255, of any sizes.

    Shape:
        each (h, w, 3) → (D,)

    Returns:
        The features named in ``APPEARANCE_FEATURES``; None where there is almost no tissue.
    """
    if not windows:
        return None
    planes = [np.ascontiguousarray(window.transpose(2, 0, 1)) for window in windows]  # each (3, h, w)
    gray = [_gray_density(plane) for plane in planes]  # each (h, w)
    strided = (..., slice(None, None, _STRIDE), slice(None, None, _STRIDE))
    tissue = np.concatenate([(one[strided] > _GLASS_DENSITY).ravel() for one in gray])  # (N,)
    count = int(np.count_nonzero(tissue))
    if count <= _MIN_TISSUE * tissue.size:
        return None
    stained = np.concatenate([plane[strided].reshape(len(plane), -1) for plane in planes], axis=1)  # (3, N) uint8
    histograms = _histograms(stained, tissue)  # (3, 256)
    center = histograms @ _DENSITY.astype(np.float64) / count  # (3,)
    centered = np.take(_DENSITY, stained, mode="clip")
    centered -= center.astype(np.float32)[:, None]
    centered *= tissue
    covariance = np.array([[np.dot(one, other) for other in centered] for one in centered], np.float64) / count
    deviation = np.sqrt(np.maximum(np.diag(covariance), 0.0))  # (3,)
    rank = int(_HIGH_QUANTILE * (count - 1))  # density falls as the value rises
    high = _DENSITY[255 - (histograms[:, ::-1].cumsum(1) <= rank).sum(1)]  # (3,)
    scale = deviation + 1e-3
    correlations = [np.arctanh(0.99 * covariance[i, j] / (scale[i] * scale[j])) for i, j in _PAIRS]
    levels = [_density_and_hue(level) for level in (center, deviation, high)]
    return np.concatenate([*levels, correlations, _texture(gray)]).astype(np.float64)


def _histograms(stained: Pixels, tissue: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """How often each channel has each value in tissue, (3, N) → (3, 256); by Pillow, faster than `np.bincount`."""
    mask = Image.fromarray(tissue.view(np.uint8)[None])
    return np.array([Image.fromarray(channel[None]).histogram(mask) for channel in stained], np.int64)


def _gray_density(planes: Pixels) -> npt.NDArray[np.float32]:
    """Optical density averaged over the channels: (3, h, w) → (h, w)."""
    product, factor = (np.empty(planes.shape[1:], np.float32) for _ in range(2))
    _intensity(planes[0], product)
    product *= _intensity(planes[1], factor)
    product *= _intensity(planes[2], factor)
    np.log(product, out=product)
    product *= np.float32(-1 / 3)
    return product


def _intensity(values: Pixels, out: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    np.multiply(values, np.float32((1 - _MIN_INTENSITY) / 255), out=out)
    out += np.float32(_MIN_INTENSITY)
    return out


def _density_and_hue(level: npt.NDArray[np.floating]) -> list[float]:
    """Log density averaged over the channels, and of red and blue relative to green."""
    red, green, blue = np.log(np.asarray(level, np.float64) + _NOISE_DENSITY)
    return [(red + green + blue) / 3, red - green, blue - green]


def _windows(image: Pixels, zoom: float) -> list[Pixels]:
    height, width = (min(length, _SIDE / zoom) for length in image.shape[:2])  # in the image's own pixels
    size = max(1, round(width * zoom)), max(1, round(height * zoom))
    tops, lefts = _starts(image.shape[0] - height), _starts(image.shape[1] - width)
    if zoom == 1:
        rows, columns = int(height), int(width)
        return [image[int(top) : int(top) + rows, int(left) : int(left) + columns] for top in tops for left in lefts]
    whole, bilinear = Image.fromarray(image), Image.Resampling.BILINEAR
    boxes = [(left, top, left + width, top + height) for top in tops for left in lefts]
    return [np.asarray(whole.resize(size, bilinear, box)) for box in boxes]


def _starts(free: float) -> list[float]:
    return [position * free for position in _POSITIONS] if free >= 1 else [0.0]


_INTENSITY = np.arange(256) / 255 * (1 - _MIN_INTENSITY) + _MIN_INTENSITY
_DENSITY = -np.log(_INTENSITY).astype(np.float32)  # of each 8-bit value


def _texture(gray: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float64]:
    """Texture features of gray windows, each (h, w)."""
    deviation = np.mean([one.std() for one in gray])
    changes = np.mean([[_change(one, lag) for lag in _LAGS] for one in gray], axis=0)
    return np.asarray(np.log((changes + 1e-3) / (deviation + 1e-3)), np.float64)


def _change(gray: npt.NDArray[np.float32], lag: int) -> float:
    """Mean absolute change over ``lag`` pixels, along rows and columns."""
    steps = [gray[:, lag:] - gray[:, :-lag], gray[lag:] - gray[:-lag]]
    return float(np.mean([np.abs(step, out=step).mean() if step.size else 0.0 for step in steps]))
