"""Images at the model's scale, and what was seen there back at the images' own."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional

from microseg.errors import DataError
from microseg.slides.pixel_size import model_zoom

__all__ = ["engine_zoom", "segment_rescaled"]

_SAME_SCALE = 0.05  # pixel sizes that differ by less than this part are taken as equal
_LARGEST_ZOOM = 16


def engine_zoom(mpp: float | None, model_mpp: float | None) -> float:
    """Factor by which an image is enlarged to the model's scale.

    Args:
        mpp: microns per pixel of the image; None if unknown.
        model_mpp: the model's; None if unknown.

    Returns:
        1 where either is unknown, or they differ by no more than 5 %.

    Raises:
        DataError: when the two are more than 16 times apart, or the image's is not positive.
    """
    if mpp is not None and not mpp > 0:
        raise DataError(f"Expected a positive number of microns per pixel, got {mpp}: leave it out if unknown.")
    zoom = model_zoom(mpp, model_mpp)
    if not 1 / _LARGEST_ZOOM <= zoom <= _LARGEST_ZOOM:
        raise DataError(
            f"Expected an image of about {model_mpp} microns per pixel, the model's, got {mpp}, more than "
            f"{_LARGEST_ZOOM} times off: give the image's true pixel size, or choose another model."
        )
    return zoom if abs(zoom - 1) > _SAME_SCALE else 1.0


def segment_rescaled(
    image: npt.NDArray[np.uint8], zoom: float, segment: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
) -> npt.NDArray[np.float32]:
    """Segment an image at the model's scale, and bring the result back to its own.

    Args:
        image: RGB, 0..255.
        zoom: factor by which it is enlarged first.
        segment: from pixels, (h, w, 3), to probabilities, (K, h, w).

    Shape:
        (H, W, 3) → (K, H, W)

    Raises:
        DataError: when the image is not uint8 RGB.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DataError(
            f"Expected an RGB image, uint8 (H, W, 3), got {image.dtype} {image.shape}: read it with read_image."
        )
    if zoom == 1:
        return segment(image)
    height, width = image.shape[:2]
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    rescaled = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))  # (h, w, 3), as in training
    small = torch.from_numpy(segment(rescaled))[None]  # (1, K, h, w)
    full = functional.interpolate(small, size=(height, width), mode="bilinear", antialias=True)  # (1, K, H, W)
    return np.asarray(full[0].numpy(), np.float32)
