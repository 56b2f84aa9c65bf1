"""What images are, from the images themselves: stained, gray, or fluorescent.

The only place that decides whether stain colors mean anything. Criteria and adaptation parts that use them ask here.
"""

from collections.abc import Iterable
from enum import StrEnum

import numpy as np
import numpy.typing as npt

__all__ = ["Modality", "image_modality", "lab_modality"]

_BLOCK = 8  # pixels that are averaged, so that noise and compression have no color
_MIN_RANGE = 4.0  # of 255; an image with less contrast shows nothing
_WHITE = 95.0  # percentile of each channel that a tint is measured at
_MIN_CHROMA = 5.0  # of 255, at the 99th percentile: differences of channels that are a color
_BLACK, _DARK = 24.0, 48.0  # of 255: largest 5th percentile and largest mode of a dark background
_LOW = 1 / 3  # fraction of the range below which the mode of an image with a dark background lies
_BIN = 4  # of 255, of the histogram that the mode is taken from

Image = npt.NDArray[np.uint8]


class Modality(StrEnum):
    """What images are."""

    STAINED = "stained"
    """Stained brightfield: colors are stains, and optical density adds up."""
    GRAY = "gray"
    """One channel on a bright background, or on none: unstained or gray brightfield, phase contrast, electron
    microscopy. Neither colors nor optical density mean anything.
    """
    FLUORESCENCE = "fluorescence"
    """A dark background, with signals in one or several colors."""

    @property
    def has_stain_colors(self) -> bool:
        """Whether colors are stains: color clusters, color alignment and optical density are meaningful."""
        return self is Modality.STAINED


def image_modality(image: Image) -> Modality | None:
    """Decide what an image is.

    An image has a dark background if its most frequent gray value is almost black and in the lowest third of its range.
    Otherwise it is gray if its channels are equal but for a tint of the light, noise and compression.

    Args:
        image: RGB, 0..255.

    Shape:
        (H, W, 3)

    Returns:
        Its modality; None for an image that shows nothing.
    """
    blocks = _block_means(image)  # (N, 3)
    gray = blocks.mean(1)
    low, high = np.percentile(gray, [0.5, 99.5])
    if high - low < _MIN_RANGE:
        return None
    mode = _BIN * float(np.bincount((gray / _BIN).astype(np.intp)).argmax())
    if np.percentile(gray, 5) <= _BLACK and mode <= _DARK and mode - low <= _LOW * (high - low):
        return Modality.FLUORESCENCE
    white = np.percentile(blocks, _WHITE, axis=0)  # (3,)
    untinted = blocks * (white.mean() / np.maximum(white, 1.0))
    chroma = np.percentile(np.ptp(untinted, axis=1), 99)
    return Modality.STAINED if chroma >= _MIN_CHROMA else Modality.GRAY


def lab_modality(images: Iterable[Image]) -> Modality:
    """Decide what most images of a lab are; images that show nothing do not count.

    Args:
        images: RGB, 0..255; a few are enough.

    Shape:
        (H, W, 3) each

    Returns:
        The most frequent modality, of equally frequent ones the one with less meaning of colors; gray if no image shows
        anything.
    """
    found = [image_modality(image) for image in images]
    return max((Modality.GRAY, Modality.FLUORESCENCE, Modality.STAINED), key=found.count)


def _block_means(image: Image) -> npt.NDArray[np.float64]:
    """Means of blocks of pixels, (N, 3); an image smaller than a block is one."""
    height, width = (max(1, length // _BLOCK) for length in image.shape[:2])
    rows, columns = min(_BLOCK, image.shape[0]), min(_BLOCK, image.shape[1])
    cut = image[: height * rows, : width * columns].reshape(height, rows, width, columns, 3)
    return np.asarray(cut.mean((1, 3), dtype=np.float64).reshape(-1, 3))
