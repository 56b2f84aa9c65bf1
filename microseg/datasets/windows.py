"""Windows: small images at the model's scale, cut out of the images of a lab."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from microseg.datasets.decoded import DecodedFiles
from microseg.datasets.image_parts import OpenImage, image_shape, open_image, resample
from microseg.datasets.sampling import Sample
from microseg.errors import DataError
from microseg.slides.images import write_png

__all__ = ["WINDOW_SIDE", "cut_windows"]

WINDOW_SIDE = 512
"""Longest side of a window, in pixels at the model's scale."""


def cut_windows(
    samples: Sequence[Sample], folder: Path, *, side: int = WINDOW_SIDE, megapixels: float = 6.0, seed: int = 0
) -> tuple[Path, ...]:
    """Cut one window at the model's scale out of each image and write it as PNG; of many images a random subset.

    Args:
        samples: The images and the factor by which each is enlarged to the model's scale; masks are not read.
        folder: Folder of the windows; created when missing.
        side: Longest side of a window, in pixels at the model's scale.
        megapixels: Limit for all windows together; at least one window is cut.
        seed: Seed of the subset and of the positions.

    Returns:
        Files of the windows, named by their index in ``samples``.

    Raises:
        DataError: There is no image.
        ImageReadError: A file cannot be read.
    """
    if not samples:
        raise DataError("Expected at least one image to cut windows from, got none: check the dataset.")
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng((seed, 3))
    files: list[Path] = []
    pixels = 0
    for index in rng.permutation(len(samples)):
        window = _window(open_image(samples[index].image, DecodedFiles()), samples[index].zoom, side, rng)
        pixels += window.shape[0] * window.shape[1]
        if files and pixels > 1e6 * megapixels:
            break
        files.append(folder / f"{index:06d}.png")
        write_png(files[-1], window)
    return tuple(sorted(files))


def _window(image: OpenImage, zoom: float, side: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    height, width = (min(length, side / zoom) for length in image_shape(image))  # in the image's own pixels
    top, left = rng.uniform(0, image_shape(image)[0] - height), rng.uniform(0, image_shape(image)[1] - width)
    if zoom == 1:
        top, left = int(top), int(left)  # the pixels as they are
    size = max(1, round(width * zoom)), max(1, round(height * zoom))
    box = (left, top, left + width, top + height)
    return resample(image, box, size, Image.Resampling.BILINEAR)
