"""Windows cut out of a lab's images at the model's scale: a sample of the lab small enough to look at whole."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from microseg.datasets.sampling import Sample
from microseg.errors import DataError
from microseg.slides.images import read_image, write_png

__all__ = ["cut_windows"]


def cut_windows(
    samples: Sequence[Sample], folder: Path, *, side: int = 512, megapixels: float = 6.0, seed: int = 0
) -> tuple[Path, ...]:
    """Cut one window out of each image and write it as a PNG; of many images a random choice.

    Args:
        samples: the images and the factor by which each is enlarged to the model's scale; masks are not read.
        folder: where the windows are written; made where it is missing.
        side: longest side of a window, pixels at the model's scale.
        megapixels: of all windows together; images beyond it are left out, but one is always taken.
        seed: of the choice and of the places.

    Returns:
        The windows' files, named after their place in ``samples``.

    Raises:
        DataError: when there is no image.
        ImageReadError: when a file cannot be read.
    """
    if not samples:
        raise DataError("Expected at least one image to cut windows from, got none: check the dataset.")
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng((seed, 3))
    files: list[Path] = []
    pixels = 0
    for index in rng.permutation(len(samples)):
        window = _window(read_image(samples[index].image), samples[index].zoom, side, rng)
        pixels += window.shape[0] * window.shape[1]
        if files and pixels > 1e6 * megapixels:
            break
        files.append(folder / f"{index:06d}.png")
        write_png(files[-1], window)
    return tuple(sorted(files))


def _window(image: npt.NDArray[np.uint8], zoom: float, side: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    height, width = (min(length, side / zoom) for length in image.shape[:2])  # in the image's own pixels
    top, left = rng.uniform(0, image.shape[0] - height), rng.uniform(0, image.shape[1] - width)
    if zoom == 1:
        top, left = int(top), int(left)  # the pixels as they are
    size = max(1, round(width * zoom)), max(1, round(height * zoom))
    box = (left, top, left + width, top + height)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box))
