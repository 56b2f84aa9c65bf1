"""Parts of images at another scale: of files, which are decoded once, and of regions of slides, which are not."""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from microseg.datasets.decoded import DecodedFiles
from microseg.slides.images import read_image
from microseg.slides.region import ImageSource, SlideRegion

__all__ = ["OpenImage", "image_shape", "open_image", "resample"]

OpenImage = npt.NDArray[np.uint8] | SlideRegion
"""What parts of an image are read from."""


def open_image(image: ImageSource, decoded: DecodedFiles) -> OpenImage:
    """Something that parts of an image can be read from: a region of a slide is not decoded as a whole."""
    if isinstance(image, SlideRegion):
        return image
    return decoded.read(image, "image", lambda: read_image(image))


def image_shape(image: OpenImage) -> tuple[int, int]:
    """Height and width."""
    return (image.height, image.width) if isinstance(image, SlideRegion) else (image.shape[0], image.shape[1])


def resample(
    image: OpenImage,
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    filter_: Image.Resampling,
    least: int = 1,
) -> npt.NDArray[np.uint8]:
    """Resample a part of an image, as Pillow does, but read only the pixels that it depends on.

    Args:
        image: (H, W) or (H, W, 3).
        box: Left, upper, right and lower edge of the part, in pixels.
        size: Width and height of the result.
        filter_: Nearest or bilinear, which reach one pixel of the coarser of both images.
        least: A side below this length is first extended to it, by mirroring at both ends; the box counts from there.

    Shape:
        (size[1], size[0]) or (size[1], size[0], 3)
    """
    if isinstance(image, SlideRegion):
        if min(image_shape(image)) >= least:
            return image.crop(box, size)  # from a level of the slide that is fine enough
        image = image.read()
    array, slices, widths, starts = image, [], [], []
    for length, low, high, wanted in ((array.shape[0], *box[1::2], size[1]), (array.shape[1], *box[0::2], size[0])):
        missing = max(0, least - length)
        reach = math.ceil(max(1.0, (high - low) / wanted)) + 1
        first = 0 if missing else max(0, math.floor(low) - reach)
        slices.append(slice(first, length if missing else min(length, math.ceil(high) + reach)))
        widths.append((missing // 2, missing - missing // 2))
        starts.append(first)
    part = np.ascontiguousarray(array[tuple(slices)])
    if any(width != (0, 0) for width in widths):
        part = np.pad(part, widths + [(0, 0)] * (array.ndim - 2), mode="symmetric")
    left, top = starts[1], starts[0]
    inner = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    return np.asarray(Image.fromarray(part).resize(size, filter_, inner))
