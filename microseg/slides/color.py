"""From stored samples to 8-bit RGB: the one place that scales, inverts, and composites."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from microseg.errors import ImageReadError

__all__ = ["BIT_DEPTHS", "Alpha", "check_bit_depth", "measured_bit_depth", "over_white", "scale_to_8_bits"]

BIT_DEPTHS = (8, 10, 12, 14, 16)
"""Bits that hold the values of a camera or scanner, in files of 16 bits."""

Alpha = Literal["straight", "premultiplied"]
"""How colors relate to transparency: independent of it, or already multiplied by it."""

_PERCENTILE = 99.9  # of the values: a few hot pixels do not decide


def check_bit_depth(depth: int) -> int:
    """Return the depth.

    Raises:
        ValueError: It is none of ``BIT_DEPTHS``.
    """
    if depth not in BIT_DEPTHS:
        raise ValueError(f"expected a bit depth of {', '.join(map(str, BIT_DEPTHS))}, got {depth}")
    return depth


def measured_bit_depth(counts: npt.NDArray[np.int64]) -> int:
    """Smallest of ``BIT_DEPTHS`` that holds the values up to the 99.9th percentile.

    Args:
        counts: Number of pixels with each value, 0 to 65535.

    Shape:
        (65536,)
    """
    total = int(counts.sum())
    highest = int(np.searchsorted(np.cumsum(counts), total * _PERCENTILE / 100))
    return next(depth for depth in BIT_DEPTHS if highest < 2**depth)


def scale_to_8_bits(path: Path, values: npt.NDArray[Any], depth: int | None) -> npt.NDArray[np.uint8]:
    """Scale samples to 0..255.

    Args:
        path: The file, for messages.
        values: Whole numbers from 0, of which larger ones than the depth holds are clipped; or floats in 0..1.
        depth: Bits; None for floats.

    Returns:
        Rounded values, of the same shape.

    Raises:
        ImageReadError: Floats outside 0..1.
    """
    if depth == 8 and values.dtype == np.uint8:
        return values
    if depth is None:
        lowest, highest = values.min(), values.max()
        if not (lowest >= -1e-6 and highest <= 1 + 1e-6):
            raise ImageReadError(f"{path}: expected floats in 0..1, got {lowest}..{highest}. Export it as 8-bit RGB.")
        full = 1.0
    else:
        full = float(2**depth - 1)
    scaled = values.clip(0, full).astype(np.float32) * np.float32(255 / full)
    return np.asarray(np.rint(scaled), np.uint8)


def over_white(
    color: npt.NDArray[np.uint8], alpha: npt.NDArray[np.uint8], kind: Alpha = "straight"
) -> npt.NDArray[np.uint8]:
    """Composite colors over white, the background of a brightfield slide.

    Args:
        color: 0..255.
        alpha: 0 (transparent) to 255 (opaque).
        kind: Whether the colors are multiplied by alpha already.

    Shape:
        color (h, w, c), alpha (h, w) → (h, w, c)
    """
    if (alpha == 255).all():
        return np.ascontiguousarray(color)
    opacity = alpha[..., None].astype(np.uint32)  # in 255ths
    light = color.astype(np.uint32) * (opacity if kind == "straight" else 255) + 255 * (255 - opacity)
    return np.asarray(np.minimum((light + 127) // 255, 255), np.uint8)
