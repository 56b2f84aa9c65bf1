"""Images as networks take them: RGB, at the pixel size that a network sees."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from microseg.errors import DataError
from microseg.slides.pixel_size import model_zoom

__all__ = ["check_rgb", "rescale", "zoom_to"]

_SAME_SCALE = 0.05  # relative difference of pixel sizes that counts as equal
_LARGEST_ZOOM = 16


def zoom_to(model_mpp: float | None, mpp: float | None) -> float:
    """Factor that enlarges an image to the model's pixel size.

    Args:
        model_mpp: Microns per pixel at which the model works; None if unknown.
        mpp: Microns per pixel of the image; None if unknown.

    Returns:
        1 if either pixel size is unknown, or they differ by no more than 5 %.

    Raises:
        DataError: They differ by a factor above 16, or that of the image is not positive.
    """
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


def check_rgb(image: npt.NDArray[np.uint8]) -> None:
    """Check that an image is one that networks take.

    Raises:
        DataError: It is not uint8 RGB, (H, W, 3), or is empty.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DataError(
            f"Expected an RGB image, uint8 (H, W, 3), got {image.dtype} {image.shape}: read it with read_image."
        )
