"""Pixel sizes: read from image files, and the zoom from one to another."""

import re
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import tifffile
from PIL import Image

from microseg.errors import DataError
from microseg.slides.tiff_layout import is_tiff, main_page

__all__ = ["MPP_RANGE", "StatedMpp", "agreed_mpp", "image_mpp", "model_zoom", "same_mpp", "unit_microns", "valid_mpp"]

MPP_RANGE = (0.05, 20.0)  # microns per pixel that a microscope image can have
_SAME = 0.05  # relative difference of two sizes that are one, differently rounded

_MICRONS = {
    "pm": 1e-6, "å": 1e-4, "ångström": 1e-4, "angstrom": 1e-4, "nm": 1e-3, "nanometer": 1e-3, "nanometre": 1e-3,
    "µm": 1.0, "um": 1.0, "µ": 1.0, "micron": 1.0, "micrometer": 1.0, "micrometre": 1.0,
    "mm": 1e3, "millimeter": 1e3, "millimetre": 1e3, "cm": 1e4, "centimeter": 1e4, "centimetre": 1e4, "dm": 1e5,
    "m": 1e6, "meter": 1e6, "metre": 1e6, "thou": 25.4, "mil": 25.4, "in": 25_400.0, "inch": 25_400.0, '"': 25_400.0,
    "inche": 25_400.0, "ft": 304_800.0, "pt": 25_400 / 72,
}  # fmt: skip


def image_mpp(path: Path | str) -> float | None:
    """Read the pixel size from an image file.

    Reads OME ``PhysicalSizeX``, Aperio ``MPP``, ImageJ units, TIFF resolution tags, PNG ``pHYs``, and the resolution of
    JPEG and BMP.

    Args:
        path: An image file.

    Returns:
        Microns per pixel; None when absent, unequal in x and y, outside ``MPP_RANGE`` (a printing resolution such as
        72 dpi), or when the file cannot be read.
    """
    path = Path(path)
    sizes: tuple[float, float] | None = None
    with suppress(Exception):  # read_image reports what is wrong with the file
        sizes = _tiff_mpp(path) if is_tiff(path) else _other_mpp(path)
    return None if sizes is None else valid_mpp(*sizes)


def valid_mpp(x: float, y: float) -> float | None:
    """Pixel size from its two sides, in microns; None where they differ, or are outside ``MPP_RANGE``."""
    return round(x, 6) if MPP_RANGE[0] <= x <= MPP_RANGE[1] and abs(x - y) <= 0.01 * x else None


@dataclass(frozen=True)
class StatedMpp:
    """Pixel size that someone states of an image.

    Attributes:
        mpp: Microns per pixel.
        origin: Who states it: ``images.csv``, ``lab.yaml``, ``--mpp`` …
        overrides: Whether it overrides that of the file, because it is stated of this very image.
    """

    mpp: float
    origin: str
    overrides: bool = False


def agreed_mpp(path: Path, own: float | None, stated: StatedMpp | None) -> float | None:
    """Pixel size of an image, of which the file and someone else may state one.

    Args:
        path: The image.
        own: Microns per pixel that its file states; None where it states none.
        stated: What someone else states; None where nobody does.

    Raises:
        DataError: The two differ by more than rounding, and none of them overrides the other.
    """
    if stated is None:
        return own
    if own is None or same_mpp(own, stated.mpp) or stated.overrides:
        return stated.mpp
    raise DataError(
        f"{path}: expected one pixel size, got {own} microns of the file and {stated.mpp} of {stated.origin}: areas "
        f"would differ {max(own / stated.mpp, stated.mpp / own) ** 2:.3g} times. Correct {stated.origin}, or state the "
        "right one for this image in images.csv (file,mpp), which overrides that of the file."
    )


def same_mpp(one: float, other: float) -> bool:
    """Whether two pixel sizes are the same but for rounding: within 5 %."""
    return abs(one - other) <= _SAME * max(one, other)


def unit_microns(unit: str) -> float | None:
    r"""Length of a unit in microns, in any of its spellings; None for pixels and unknown units.

    Micro may be the micro sign, the Greek letter, ``u``, an escape of it (``\u00B5``, as ImageJ writes), or one that
    was decoded wrongly.
    """
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), unit.strip().strip("\0"))
    text = re.sub(r"&#(?:x([0-9a-fA-F]+)|(\d+));", lambda f: chr(int(f[1], 16) if f[1] else int(f[2])), text)
    text = text.replace("Âµ", "µ").replace("Î¼", "µ").replace("\N{GREEK SMALL LETTER MU}", "µ")
    text = text.replace("\N{REPLACEMENT CHARACTER}m", "µm").replace("&micro;", "µ")
    if text == "Mm":  # megameters
        return None
    text = unicodedata.normalize("NFC", text).lower().replace("\N{GREEK SMALL LETTER MU}", "µ").rstrip(".")
    return _MICRONS.get(text, _MICRONS.get(text.removesuffix("s")))


def _other_mpp(path: Path) -> tuple[float, float] | None:
    with Image.open(path, formats=("PNG", "JPEG", "BMP")) as image:
        dots = image.info.get("dpi")
    return (25_400 / dots[0], 25_400 / dots[1]) if dots else None


def _tiff_mpp(path: Path) -> tuple[float, float] | None:
    with tifffile.TiffFile(path) as tiff:
        page, ome = main_page(path, tiff)
        text = str(tiff.pages.first.description or "")
        resolution = [page.tags.valueof(tag) for tag in (282, 283)]
        unit = {2: 25_400.0, 3: 10_000.0}.get(int(page.tags.valueof(296, 2)))
    if ome is not None and ome.pixel_size is not None:
        (x, x_unit), (y, y_unit) = ome.pixel_size
        microns = unit_microns(x_unit), unit_microns(y_unit)
        return None if microns[0] is None or microns[1] is None else (x * microns[0], y * microns[1])
    if aperio := re.search(r"\bMPP\s*=\s*([\d.]+)", text):
        return float(aperio[1]), float(aperio[1])
    if text.startswith("ImageJ=") and (stated := re.search(r"^unit=(.*)$", text, re.MULTILINE)):
        yunit = re.search(r"^yunit=(.*)$", text, re.MULTILINE)
        unit = unit_microns(stated[1])
        if yunit and unit_microns(yunit[1]) != unit:
            return None
    if unit is None or not all(resolution):
        return None
    x, y = (unit * denominator / numerator for numerator, denominator in resolution)
    return x, y


def model_zoom(mpp: float | None, model_mpp: float | None) -> float:
    """Factor by which an image is enlarged to the model's scale.

    Args:
        mpp: Microns per pixel of the image; None if unknown.
        model_mpp: Microns per pixel of the model; None if unknown.

    Returns:
        1 where either is unknown.
    """
    return mpp / model_mpp if mpp is not None and model_mpp is not None else 1.0
