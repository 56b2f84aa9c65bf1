"""Pixel sizes: read from image files, and the zoom from one to another."""

import re
from contextlib import suppress
from pathlib import Path

from PIL import Image

from microseg.slides.images import is_tiff

__all__ = ["MPP_RANGE", "image_mpp", "model_zoom", "valid_mpp"]

MPP_RANGE = (0.05, 20.0)  # microns per pixel that a microscope image can have

_MICRONS = {"nm": 1e-3, "µm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "\\u00b5m": 1.0, "mm": 1e3, "cm": 1e4}


def image_mpp(path: Path | str) -> float | None:
    """Read the pixel size from an image file.

    Reads OME ``PhysicalSizeX``, Aperio ``MPP``, ImageJ units, TIFF resolution tags and PNG ``pHYs``.

    Args:
        path: An image file.

    Returns:
        Microns per pixel; None when absent, unequal in x and y, outside ``MPP_RANGE`` (a printing resolution such as
        72 dpi), or when the file cannot be read.
    """
    path = Path(path)
    sizes: tuple[float, float] | None = None
    with suppress(Exception):  # read_image reports what is wrong with the file
        sizes = _tiff_mpp(path) if is_tiff(path) else _png_mpp(path)
    return None if sizes is None else valid_mpp(*sizes)


def valid_mpp(x: float, y: float) -> float | None:
    """Pixel size from its two sides, in microns; None where they differ, or are outside ``MPP_RANGE``."""
    return round(x, 6) if MPP_RANGE[0] <= x <= MPP_RANGE[1] and abs(x - y) <= 0.01 * x else None


def _png_mpp(path: Path) -> tuple[float, float] | None:
    with Image.open(path, formats=("PNG",)) as image:
        dots = image.info.get("dpi")
    return (25_400 / dots[0], 25_400 / dots[1]) if dots else None


def _tiff_mpp(path: Path) -> tuple[float, float] | None:
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        text = tiff.ome_metadata or page.description
        imagej_unit = str((tiff.imagej_metadata or {}).get("unit", "")).lower()
        resolution = [page.tags.valueof(tag) for tag in (282, 283)]
        unit = {2: 25_400.0, 3: 10_000.0}.get(int(page.tags.valueof(296, 2)))
    if tiff.is_ome:
        return _ome_mpp(text)
    if aperio := re.search(r"\bMPP\s*=\s*([\d.]+)", text):
        return float(aperio[1]), float(aperio[1])
    microns = _MICRONS.get(imagej_unit, unit)
    if microns is None or not all(resolution):
        return None
    x, y = (microns * denominator / numerator for numerator, denominator in resolution)
    return x, y


def _ome_mpp(xml: str) -> tuple[float, float] | None:
    sizes = []
    for axis in "XY":
        size = re.search(rf'PhysicalSize{axis}="([^"]+)"', xml)
        unit = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', xml)
        microns = _MICRONS.get(unit[1] if unit else "µm")
        if size is None or microns is None:
            return None
        sizes.append(float(size[1]) * microns)
    return sizes[0], sizes[1]


def model_zoom(mpp: float | None, model_mpp: float | None) -> float:
    """Factor by which an image is enlarged to the model's scale.

    Args:
        mpp: Microns per pixel of the image; None if unknown.
        model_mpp: Microns per pixel of the model; None if unknown.

    Returns:
        1 where either is unknown.
    """
    return mpp / model_mpp if mpp is not None and model_mpp is not None else 1.0
