"""Artifacts of slides: marker pen, and places out of focus."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from microseg.slides.modality import Modality, image_modality

__all__ = ["FOCUS_MPP", "is_out_of_focus", "pen_map", "sharpness"]

Pixels = npt.NDArray[np.uint8]

FOCUS_MPP = 0.5
"""Microns per pixel at which focus is measured; coarser slides are measured at their finest level."""

_SATURATION = 0.45  # of ink, at least; tissue is paler on a thumbnail, which averages it with the gaps in it
_DARK = 70  # of 255: brightest channel of black ink
_FLAT = 0.04  # standard deviation of ink around each pixel, in optical density; tissue is uneven
_MIN_SHARE = 2e-4  # of the thumbnail that a stroke covers, at least
_MOST_TISSUE = 0.25  # of the tissue: more of a color is the stain
_SHARP = 0.32  # 1/4 for any smooth change, 0.4 to 0.9 for tissue in focus
_MIN_CONTRAST = 0.01  # optical density between pixels of some distance: less shows nothing to focus on


def pen_map(thumbnail: Pixels, tissue: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Find marker pen on a thumbnail of a slide: even strokes of saturated green or blue ink, or of black.

    It looks at stained brightfield slides only. A color that covers more than a quarter of the tissue is a stain, and
    no pen, so that blue or green stains are kept.

    Args:
        thumbnail: RGB, 0..255.
        tissue: Whether each pixel is tissue, ink included.

    Shape:
        thumbnail (h, w, 3), tissue (h, w) → (h, w)
    """
    found = np.zeros(tissue.shape, np.bool_)
    if image_modality(thumbnail) is not Modality.STAINED:
        return found
    red, green, blue = np.moveaxis(thumbnail.astype(np.float32), 2, 0)
    brightest, darkest = thumbnail.max(2).astype(np.float32), thumbnail.min(2)
    saturated = (brightest - darkest) > _SATURATION * np.maximum(brightest, 1)
    density = -np.log10(np.maximum(thumbnail.mean(2), 1) / 255).astype(np.float32)
    mean = ndimage.uniform_filter(density, 5)
    uneven = np.sqrt(np.maximum(ndimage.uniform_filter(density**2, 5) - mean**2, 0))
    even = ndimage.binary_opening(uneven < _FLAT + 0.1 * mean, iterations=1)
    inks = (
        saturated & (green > 1.15 * red) & (green > 1.02 * blue),
        saturated & (blue > 1.3 * green) & (blue > 1.6 * red),
        brightest < _DARK,
    )
    for ink in inks:
        stroke = ink & even & tissue
        if not stroke.any() or stroke.sum() > _MOST_TISSUE * max(1, tissue.sum()):
            continue
        labels, _ = ndimage.label(ndimage.binary_closing(stroke, iterations=2))
        large = np.flatnonzero(np.bincount(labels.ravel()) >= max(12, _MIN_SHARE * stroke.size))
        found |= np.isin(labels, large[large > 0])
    return np.asarray(ndimage.binary_dilation(found, iterations=3) if found.any() else found)


def sharpness(image: Pixels) -> float:
    """Sharpness of a place in a slide: change over two pixels relative to that over eight, in optical density.

    It does not depend on the stain or on its amount: 1/4 for whatever changes smoothly, 1 for noise.

    Args:
        image: RGB, 0..255, at about ``FOCUS_MPP``.

    Shape:
        (H, W, 3)

    Returns:
        The ratio; NaN where there is nothing to focus on.
    """
    density = -np.log10(np.maximum(image.mean(2), 1) / 255)
    near, far = (
        (np.abs(density[lag:] - density[:-lag]).mean() + np.abs(density[:, lag:] - density[:, :-lag]).mean()) / 2
        for lag in (2, 8)
    )
    return float(near / far) if far >= _MIN_CONTRAST else float("nan")


def is_out_of_focus(image: Pixels) -> bool:
    """Whether a place in a slide is blurred; what shows nothing to focus on is not."""
    return sharpness(image) < _SHARP
