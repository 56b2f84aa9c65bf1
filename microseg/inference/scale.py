"""The scale at which a network sees an image."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from microseg.errors import DataError
from microseg.slides.pixel_size import model_zoom

__all__ = ["rescale", "zoom_to"]

_SAME_SCALE = 0.05  # relative difference of pixel sizes that counts as equal
_LARGEST_ZOOM = 16


def zoom_to(model_mpp: float | None, mpp: float | None) -> float:
    """Factor that enlarges an image to the model's pixel size; see `Engine.zoom`."""
    if mpp is not None and not mpp > 0:
        raise DataError(f"Expected a positive number of microns per pixel, got {mpp}: leave it out if unknown.")
    zoom = model_zoom(mpp, model_mpp)
    if not 1 / _LARGEST_ZOOM <= zoom <= _LARGEST_ZOOM:
        raise DataError(
            f"Expected an image of about {model_mpp} microns per pixel, as the model, got {mpp}, which differs by "
            f"more than a factor of {_LARGEST_ZOOM}: give the image's true pixel size, or choose another model."
        )
    return zoom if abs(zoom - 1) > _SAME_SCALE else 1.0


def rescale(image: npt.NDArray[np.uint8], zoom: float) -> npt.NDArray[np.uint8]:
    """Enlarge an image by a factor, as in training; (H, W, 3) → (h, w, 3)."""
    if zoom == 1:
        return image
    size = max(1, round(image.shape[1] * zoom)), max(1, round(image.shape[0] * zoom))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
