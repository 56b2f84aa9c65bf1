"""Index masks: images whose values are class indices."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from microseg.annotations.classes import IGNORE
from microseg.errors import ImageReadError
from microseg.slides.decoding import FORMATS, decode, is_deep_png, read_deep_png, read_errors
from microseg.slides.images import read_tiff_values
from microseg.slides.tiff_layout import is_tiff

__all__ = ["IGNORE", "mask_advice", "mask_values", "read_mask"]


def read_mask(path: Path | str) -> npt.NDArray[np.uint8]:
    """Read a mask file as class indices.

    Palette files give their indices, gray files their values, color files the value that all their channels share.

    Args:
        path: A PNG, TIFF or BMP file.

    Shape:
        (H, W)

    Returns:
        The class index of each pixel; ``IGNORE`` (255) where a pixel is ignored.

    Raises:
        ImageReadError: As `read_image`; also for JPEG (its compression changes class indices), for colors that are
            not gray, for partial transparency and for values outside 0..255.
    """
    path = Path(path)
    values = mask_values(path)
    with read_errors(path, "a mask"):
        if values.min() < 0 or values.max() > IGNORE:
            raise ImageReadError(
                f"{path}: expected class indices 0..254 (255 = ignore), got {values.min()}..{values.max()}. "
                f"{mask_advice(values)}"
            )
        return values.astype(np.uint8)


def mask_values(path: Path) -> npt.NDArray[Any]:
    """Read the whole numbers that a mask file stores.

    Args:
        path: A PNG, TIFF or BMP file.

    Shape:
        (H, W)

    Raises:
        ImageReadError: As `read_mask`, but for the range of values.
    """
    with read_errors(path, "a mask"):
        if is_tiff(path):
            values, paged = read_tiff_values(path)
            if paged:
                raise ImageReadError(
                    f"{path}: expected one page with 0, 1, 2 … for the classes, got {values.shape[2]} pages. Write the "
                    "index of each pixel's class into one page, or state `masks: class_pages` in lab.yaml where each "
                    "page is the mask of a class, in the order of the classes."
                )
        elif is_deep_png(path):
            values = read_deep_png(path)
        else:
            values = _mask_values(path)
        if values.ndim == 3:
            values = _shared_channel(path, values)
        if values.dtype.kind == "f":
            raise ImageReadError(
                f"{path}: expected whole numbers (class indices), got {values.dtype}. Save the mask as an 8-bit PNG."
            )
        return values


def mask_advice(values: npt.NDArray[Any]) -> str:
    """What to do about a mask whose values are no class indices, by what they seem to be."""
    found = np.unique(values)
    found = found[found != 0]
    if len(found) == 1 and found[0] >= IGNORE:
        return (
            f"Write 1 in place of {found[0]}, or state `masks: binary` in lab.yaml where {found[0]} is the class: it "
            "is the only value beside 0."
        )
    if len(found) > 8 and found[-1] == IGNORE and found[0] >= 1 and not _is_numbering(found):
        return (
            "It seems to have smoothed edges: values between 0 and 255. Export it without smoothing (resize by nearest "
            "neighbor), as class indices or black and white with `masks: binary` in lab.yaml."
        )
    if _is_numbering(found):
        return (
            "These seem to be numbers of objects: state `masks: instances` in lab.yaml where they are of one class; "
            "otherwise write the class index of each pixel."
        )
    return (
        "Write class indices, or name every class in lab.yaml; where these are numbers of objects of one class, state "
        "`masks: instances`."
    )


def _is_numbering(found: npt.NDArray[Any]) -> bool:
    """Whether values above 0 are numbers of objects: nearly all from 1 to the largest."""
    return bool(len(found) > 2 and found[0] >= 1 and len(found) >= 0.8 * found[-1] and found[-1] != IGNORE)


def _mask_values(path: Path) -> npt.NDArray[Any]:
    """Decode a mask with Pillow, keeping the stored values."""
    with Image.open(path, formats=FORMATS) as header:
        if header.format in ("JPEG", "MPO"):
            raise ImageReadError(
                f"{path}: expected a lossless mask (PNG, TIFF or BMP), got JPEG, whose compression changes class "
                "indices. Export the mask as PNG."
            )
        rawmode = header.tile[0].args if header.tile else None
    image = decode(path)
    if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "F", "RGB", "RGBA", "LA", "PA"):
        raise ImageReadError(f"{path}: expected class indices, got color mode {image.mode}. Save it as an 8-bit PNG.")
    if image.mode == "PA":
        image = image.convert("RGBA")
    values: npt.NDArray[Any] = np.asarray(image)
    kind, _, coding = str(rawmode[0] if isinstance(rawmode, tuple) else rawmode).partition(";")
    if kind in ("1", "L"):  # Pillow inverts min-is-white values, and scales 2 and 4 bits to 0..255
        values = (~values if "I" in coding else values) // {"2": 85, "4": 17}.get(coding[:1], 1)
    return values


def _shared_channel(path: Path, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Reduce (H, W, channels) to the value that all color channels share."""
    if values.shape[2] in (2, 4):
        if (values[:, :, -1] != np.iinfo(values.dtype).max).any():
            raise ImageReadError(f"{path}: expected an opaque mask, got transparency. Save it as an 8-bit PNG.")
        values = values[:, :, :-1]
    if (values != values[:, :, :1]).any():
        raise ImageReadError(
            f"{path}: expected one class index a pixel, got colors. State the palette in lab.yaml, or save the class "
            "indices (0, 1, 2 …) as an 8-bit gray or palette PNG."
        )
    return values[:, :, 0]
