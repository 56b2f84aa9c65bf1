"""Artifacts of slides: marker pen, and places out of focus."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from microseg.slides.modality import Modality, image_modality

__all__ = ["FOCUS_MPP", "is_out_of_focus", "pen_map", "sharpness"]

Pixels = npt.NDArray[np.uint8]

FOCUS_MPP = 0.5
"""Microns per pixel at which focus is measured; coarser slides are measured at their finest level."""

_INK_MPP = 8.0  # microns per pixel at which ink is looked for, at most: nuclei and gaps are averaged
_WIDTH = 150.0  # microns: a stroke is wider; most structures of tissue that have its color are not
_MARGIN = 50.0  # microns around a stroke that are left out with it
_SATURATION = 0.45  # of ink, at least
_DARK = 60  # of 255: brightest channel of black ink
_NEUTRAL = 25  # of 255: difference of the channels of black ink, at most; dark tissue is purple, red or brown
_FLAT = 0.04  # standard deviation of ink around each pixel, in optical density; tissue is uneven
_MOST_TISSUE = 0.25  # of the tissue: more of a color is the stain
_SHARP = 0.32  # 1/4 for any smooth change, 0.4 to 0.9 for tissue in focus
_MIN_CONTRAST = 0.01  # optical density between pixels of some distance: less shows nothing to focus on


def pen_map(thumbnail: Pixels, tissue: npt.NDArray[np.bool_], mpp: float) -> npt.NDArray[np.bool_]:
    """Find marker pen on a thumbnail of a slide: wide, even strokes of saturated green, blue or red ink, or of black.

    It looks at stained brightfield slides only. A color that covers more than a quarter of the tissue is a stain, and
    no pen, so that blue or green stains are kept; and nothing narrower than 150 µm is pen.

    Args:
        thumbnail: RGB, 0..255.
        tissue: Whether each pixel is tissue, ink included.
        mpp: Microns per pixel of the thumbnail.

    Shape:
        thumbnail (h, w, 3), tissue (h, w) → (h, w)
    """
    from scipy import ndimage  # many commands look at no slide

    nothing = np.zeros(tissue.shape, np.bool_)
    if image_modality(thumbnail) is not Modality.STAINED:
        return nothing
    factor = max(1, min(round(_INK_MPP / mpp), *tissue.shape))
    scale = factor * mpp
    image = np.asarray(Image.fromarray(thumbnail).reduce(factor))
    area = np.asarray(Image.fromarray(tissue.astype(np.uint8) * 255).reduce(factor)) > 127
    density = -np.log10(np.maximum(image.mean(2), 1) / 255).astype(np.float32)
    mean = ndimage.uniform_filter(density, 5)
    uneven = np.sqrt(np.maximum(ndimage.uniform_filter(density**2, 5) - mean**2, 0))
    even = uneven < _FLAT + 0.1 * mean
    found = np.zeros(area.shape, np.bool_)
    for ink in _inks(image.astype(np.float32)):
        color = ink & area
        if not color.any() or color.sum() > _MOST_TISSUE * area.sum():
            continue
        stroke = ndimage.binary_closing(color & even)
        core = ndimage.distance_transform_edt(stroke) * scale > _WIDTH / 2
        found |= ndimage.binary_propagation(core, mask=stroke) if core.any() else False
    if not found.any():
        return nothing
    found = ndimage.binary_dilation(found, iterations=2 + round(_MARGIN / scale))
    large = found.repeat(factor, 0).repeat(factor, 1)
    return np.asarray(large[: tissue.shape[0], : tissue.shape[1]])


def _inks(image: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.bool_], ...]:
    """Where an image has the color of green, blue, red and black ink."""
    red, green, blue = np.moveaxis(image, 2, 0)
    brightest, darkest = image.max(2), image.min(2)
    saturated = (brightest - darkest) > _SATURATION * np.maximum(brightest, 1)
    return (
        saturated & (green > 1.15 * red) & (green > 1.02 * blue),
        saturated & (blue > 1.3 * green) & (blue > 2.5 * red),  # Masson's blue: 1 to 2, to 2.9 in places
        (red > 3 * green) & (red > 3 * blue),
        (brightest < _DARK) & (brightest - darkest < _NEUTRAL),
    )


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
