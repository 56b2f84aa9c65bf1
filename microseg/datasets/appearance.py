"""What an image looks like, in a few figures: its stain in optical density, and its texture at the model's scale.

They need no network, take a few milliseconds, and are compared with those of the images that a model knows.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["APPEARANCE_FEATURES", "image_features", "window_features"]

_SIDE = 256  # pixels of a window at the model's scale
_PLACES = (0.25, 0.75)  # of the windows, as shares of what an image has to spare
_DARKEST = 1 / 256  # added to the intensity, so that black has a finite density
_GLASS = 0.15  # optical density below which a pixel shows no tissue
_LEAST_TISSUE = 0.02  # share of the pixels
_LEAST = 0.02  # added before logarithms are taken: smaller densities are the camera's noise
_STRONG = 0.95  # quantile
_EVERY = 2  # pixels between those whose color is looked at
_LAGS = (1, 2, 4)  # pixels
_CHANNELS = ("red", "green", "blue")
_PAIRS = ((0, 1), (0, 2), (1, 2))

_LEVELS = ("mean", "deviation", "strongest")

APPEARANCE_FEATURES = (
    *(f"{level}_{figure}" for level in _LEVELS for figure in ("density", "red_to_green", "blue_to_green")),
    *(f"together_{_CHANNELS[one]}_{_CHANNELS[other]}" for one, other in _PAIRS),
    *(f"texture_{lag}" for lag in _LAGS),
)
"""Names of the figures."""

Pixels = npt.NDArray[np.uint8]


def image_features(image: Pixels, zoom: float = 1.0) -> npt.NDArray[np.float64] | None:
    """Describe an image by up to four windows of it.

    Args:
        image: RGB.
        zoom: factor by which it is enlarged to the model's scale.

    Shape:
        (H, W, 3) → (D,)

    Returns:
        As `window_features`.
    """
    return window_features(_windows(image, zoom))


def window_features(windows: Sequence[Pixels]) -> npt.NDArray[np.float64] | None:
    """Describe an image by windows of it at the model's scale.

    Color is told from the pixels that show tissue, by the mean, the standard deviation and the 95th percentile of
    their optical density: of each the logarithm over all channels, and the logarithms of red and of blue beside green,
    which belong to the stain whatever its strength. How the channels go together is Fisher's z of their correlations.
    Texture is how much the density changes over 1, 2 and 4 pixels beside how much it varies at all: it tells
    sharpness, compression and magnification.

    Args:
        windows: RGB, of any sizes.

    Shape:
        each (h, w, 3) → (D,)

    Returns:
        The figures named by ``APPEARANCE_FEATURES``; None where there is next to no tissue.
    """
    densities = [_TABLE[window] for window in windows]  # each (h, w, 3)
    gray = [(density[..., 0] + density[..., 1] + density[..., 2]) / 3 for density in densities]  # each (h, w)
    some = (slice(None, None, _EVERY), slice(None, None, _EVERY))
    parts = [density[some][one[some] > _GLASS] for density, one in zip(densities, gray, strict=True)]  # each (n, 3)
    stained = np.concatenate([np.empty((0, 3), np.float32), *parts])  # (N, 3)
    if len(stained) <= _LEAST_TISSUE * sum(one[some].size for one in gray):
        return None
    center = stained.mean(0, dtype=np.float64)  # (3,)
    centerd = stained - center.astype(np.float32)
    covariance = (centerd.T @ centerd / len(stained)).astype(np.float64)  # (3, 3)
    deviation = np.sqrt(np.maximum(np.diag(covariance), 0.0))  # (3,)
    place = int(_STRONG * (len(stained) - 1))
    strongest = np.partition(stained, place, axis=0)[place]  # (3,)
    scale = deviation + 1e-3
    together = [np.arctanh(0.99 * covariance[i, j] / (scale[i] * scale[j])) for i, j in _PAIRS]
    levels = [_amount_and_hue(level) for level in (center, deviation, strongest)]
    return np.concatenate([*levels, together, _texture(gray)]).astype(np.float64)


def _amount_and_hue(level: npt.NDArray[np.floating]) -> list[float]:
    """How dense all channels are together, and two of them beside the third: of one stain the latter stay the same."""
    red, green, blue = np.log(np.asarray(level, np.float64) + _LEAST)
    return [(red + green + blue) / 3, red - green, blue - green]


def _windows(image: Pixels, zoom: float) -> list[Pixels]:
    height, width = (min(length, _SIDE / zoom) for length in image.shape[:2])  # in the image's own pixels
    size = max(1, round(width * zoom)), max(1, round(height * zoom))
    tops, lefts = _spread(image.shape[0] - height), _spread(image.shape[1] - width)
    if zoom == 1:
        rows, columns = int(height), int(width)
        return [image[int(top) : int(top) + rows, int(left) : int(left) + columns] for top in tops for left in lefts]
    picture, bilinear = Image.fromarray(image), Image.Resampling.BILINEAR
    boxes = [(left, top, left + width, top + height) for top in tops for left in lefts]
    return [np.asarray(picture.resize(size, bilinear, box)) for box in boxes]


def _spread(spare: float) -> list[float]:
    return [share * spare for share in _PLACES] if spare >= 1 else [0.0]


_TABLE = -np.log(np.arange(256) / 255 * (1 - _DARKEST) + _DARKEST).astype(np.float32)  # of each 8-bit value


def _texture(gray: Sequence[npt.NDArray[np.floating]]) -> npt.NDArray[np.float64]:
    varies = float(np.mean([one.std() for one in gray]))
    changes = [np.mean([_change(one, lag) for one in gray]) for lag in _LAGS]
    return np.log((np.array(changes, np.float64) + 1e-3) / (varies + 1e-3))


def _change(gray: npt.NDArray[np.floating], lag: int) -> float:
    """Mean absolute change over so many pixels, along rows and columns."""
    steps = [np.abs(gray[:, lag:] - gray[:, :-lag]), np.abs(gray[lag:] - gray[:-lag])]
    return float(np.mean([step.mean() if step.size else 0.0 for step in steps]))
