"""Checks of one image and its mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from microseg.annotations.index_masks import IGNORE, read_mask
from microseg.datasets.names import image_name
from microseg.errors import ImageReadError
from microseg.slides.images import image_digest, read_image
from microseg.slides.pixel_size import image_mpp

__all__ = ["MIN_SIDE", "CheckedImage", "check_pair"]

MIN_SIDE = 16  # pixels; nothing can be learned from a smaller image

_PLAIN_PNG_CHUNKS = {b"IHDR", b"IDAT", b"IEND", b"pHYs", b"gAMA", b"sRGB", b"cHRM"}


@dataclass(frozen=True)
class CheckedImage:
    """One image that can be taken over, with its mask.

    Attributes:
        name: Its name, without suffix.
        image: Where it lies.
        mask: Where its mask lies; None when unlabelled.
        width: Pixels.
        height: Pixels.
        mpp: Microns per pixel that the file itself states; None when it states none.
        sha256: `image_digest` of the image.
        plain: Whether the file is an 8-bit RGB PNG without metadata, which can be copied as it is.
    """

    name: str
    image: Path
    mask: Path | None
    width: int
    height: int
    mpp: float | None
    sha256: str
    plain: bool


def check_pair(image: Path, mask: Path | None, classes: Sequence[str]) -> CheckedImage | dict[Path, str]:
    """Check an image and its mask.

    Args:
        image: A file.
        mask: The file of its mask; None when unlabelled.
        classes: Names of the classes in the order of their mask values, background first.

    Returns:
        What is known of the image, or the reasons by path when it or its mask cannot be used.
    """
    try:
        pixels = read_image(image)  # (H, W, 3)
    except ImageReadError as error:
        return {image: str(error)}
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_SIDE:
        return {image: f"expected at least {MIN_SIDE} pixels a side, got {width} x {height}. Send a larger region."}
    if mask is not None:
        try:
            fault = _mask_fault(read_mask(mask), (height, width), classes)
        except ImageReadError as error:
            fault = str(error).removeprefix(f"{mask}: ")
        if fault is not None:
            return {mask: fault, image: f"its mask {mask.name} is refused: {fault}"}
    return CheckedImage(
        name=image_name(image),
        image=image,
        mask=mask,
        width=width,
        height=height,
        mpp=image_mpp(image),
        sha256=image_digest(pixels),
        plain=_is_plain_png(image),
    )


def _mask_fault(labels: npt.NDArray[np.uint8], size: tuple[int, int], classes: Sequence[str]) -> str | None:
    """Say what is wrong with a mask (H, W) of an image of ``size`` (H, W), if anything."""
    if labels.shape != size:
        return (
            f"expected the image's size {size[1]} x {size[0]}, got {labels.shape[1]} x {labels.shape[0]}. "
            "Export the mask at the image's size."
        )
    found = np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist()
    known = ", ".join(f"{index} = {name}" for index, name in enumerate(classes))
    if IGNORE in found and not any(0 < value < IGNORE for value in found):
        return (
            f"expected class indices ({known}), got only {' and '.join(map(str, found))}. {IGNORE} means 'ignore', so "
            f"this mask would teach nothing; write 1 where it is {classes[1]}."
        )
    if unknown := [value for value in found if value >= len(classes) and value != IGNORE]:
        return (
            f"expected class indices ({known}; {IGNORE} = ignore), got {', '.join(map(str, unknown[:8]))}. "
            "Write class indices, or name every class in lab.yaml."
        )
    return None


def _is_plain_png(path: Path) -> bool:
    """Tell whether a file that `read_image` accepts is an 8-bit RGB PNG of nothing but pixels."""
    chunks: set[bytes] = set()
    with path.open("rb") as file:
        header = file.read(26)
        if header[:8] != b"\x89PNG\r\n\x1a\n" or header[24:26] != b"\x08\x02":  # bit depth 8, color type RGB
            return False
        file.seek(8)
        while start := file.read(8):
            chunks.add(start[4:])
            file.seek(int.from_bytes(start[:4]) + 4, 1)  # the content and its checksum
    return chunks <= _PLAIN_PNG_CHUNKS
