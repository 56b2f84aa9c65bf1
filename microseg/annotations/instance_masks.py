"""Instance masks: images whose values are numbers of objects."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from microseg.annotations.index_masks import mask_values
from microseg.errors import ImageReadError
from microseg.files import atomic_write

__all__ = ["INSTANCES", "read_instances", "write_instances"]

INSTANCES = "instances"
"""Folder of the instance masks of a dataset."""


def read_instances(path: Path | str) -> npt.NDArray[np.int32]:
    """Read an instance mask: 0 is background, each other value the number of one object.

    Args:
        path: A PNG, TIFF or BMP file of whole numbers.

    Shape:
        (H, W)

    Raises:
        ImageReadError: As `read_image`; also for JPEG, colors, and numbers that are negative or above 2,147,483,647.
    """
    values = mask_values(Path(path))
    if values.min() < 0 or values.max() > np.iinfo(np.int32).max:
        raise ImageReadError(
            f"{path}: expected numbers of objects from 1, 0 for none, got {values.min()}..{values.max()}."
        )
    return values.astype(np.int32)


def write_instances(path: Path, labels: npt.NDArray[np.integer]) -> None:
    """Write numbered objects as a 16-bit PNG; numbers are made contiguous where they need more bits.

    Raises:
        ImageReadError: There are more than 65,535 objects.
    """
    if labels.max(initial=0) > np.iinfo(np.uint16).max:
        _, numbers = np.unique(np.append(0, labels.ravel()), return_inverse=True)  # 0 stays 0
        labels = numbers[1:].reshape(labels.shape)
        if labels.max() > np.iinfo(np.uint16).max:
            raise ImageReadError(f"{path}: expected at most 65,535 objects in an image, got {labels.max()}. Cut it.")
    with atomic_write(path) as part:
        Image.fromarray(labels.astype(np.uint16)).save(part, format="PNG")
