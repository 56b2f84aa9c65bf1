"""TIFF files that Pillow cannot read exactly."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from microseg.errors import ImageReadError
from microseg.slides.pixel_limit import check_pixels

__all__ = ["is_tiff", "read_deep_tiff"]

_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_tiff(path: Path) -> bool:
    """Whether a file begins as a TIFF does, whatever its name."""
    with path.open("rb") as file:
        return file.read(4) in _STARTS


def read_deep_tiff(path: Path) -> npt.NDArray[Any] | None:
    """Read a TIFF that Pillow cannot read exactly: over 8 bits, or channels on pages of their own.

    Args:
        path: Any file.

    Shape:
        (H, W, channels)

    Returns:
        The values of the first image, upright; None for what Pillow reads.

    Raises:
        ImageReadError: It is larger than can be read as a whole, or of neither gray nor RGB values. What tifffile
            raises on damaged files comes through.
    """
    if not is_tiff(path):
        return None
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        series = tiff.series[0]
        page = series.keyframe
        paged_channels = "C" in series.axes and "C" not in page.axes
        if page.dtype is None or (page.dtype in (np.uint8, np.bool_) and not paged_channels):
            return None
        check_pixels(path, max(page.imagewidth * page.imagelength, series.size / 4))
        if page.photometric not in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB):
            raise ImageReadError(
                f"{path}: expected gray or RGB values in a TIFF of {page.dtype}, got "
                f"{getattr(page.photometric, 'name', page.photometric)}. Export it as 8-bit RGB."
            )
        axes = series.axes if paged_channels else page.axes
        try:
            values: npt.NDArray[Any] = series.asarray() if paged_channels else page.asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error) or paged_channels:
                raise
            values, axes = _read_first_page(path), "SYX"  # compressed in a way that tifffile alone cannot undo
        orientation = page.tags.valueof(274, 1)
    for axis in axes:
        if axis not in "YXSC":
            values = values.take(0, axis=axes.index(axis))
            axes = axes.replace(axis, "", 1)
    values = values.transpose([axes.index(axis) for axis in "YXCS" if axis in axes])
    return _upright(values.reshape(*values.shape[:2], -1), orientation)  # (H, W, channels)


def _read_first_page(path: Path) -> npt.NDArray[Any]:
    import rasterio

    with rasterio.open(path) as raster:
        values: npt.NDArray[Any] = raster.read()  # (channels, H, W)
    return values


def _upright(values: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Apply the TIFF orientation tag (1..8)."""
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values
