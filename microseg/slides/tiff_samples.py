"""What the samples of a TIFF page mean: color, transparency, type, orientation, palette."""

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import tifffile

from microseg.errors import ImageReadError
from microseg.slides.channels import CHANNEL_ADVICE
from microseg.slides.color import Alpha

__all__ = [
    "Color",
    "channel_samples",
    "color_of",
    "color_samples",
    "read_orientation",
    "read_palette",
    "sample_type",
]

_PHOTOMETRIC = tifffile.PHOTOMETRIC
_JPEG, _OLD_JPEG = (7, 34892, 33007), 6

Color = Literal["gray", "white is zero", "rgb", "palette", "cmyk", "channels"]
_COLORS: dict[int, tuple[Color, int]] = {
    _PHOTOMETRIC.MINISWHITE: ("white is zero", 1),
    _PHOTOMETRIC.MINISBLACK: ("gray", 1),
    _PHOTOMETRIC.RGB: ("rgb", 3),
    _PHOTOMETRIC.PALETTE: ("palette", 1),
    _PHOTOMETRIC.SEPARATED: ("cmyk", 4),
    _PHOTOMETRIC.YCBCR: ("rgb", 3),  # the JPEG decoder converts it
}


def color_of(page: tifffile.TiffPage) -> Color | None:
    """What the color samples of a page mean; None where it is not understood."""
    return _COLORS.get(int(page.photometric), (None, 0))[0]


def color_samples(path: Path, page: tifffile.TiffPage, pages: int) -> tuple[Color, int, Alpha | None]:
    """What the samples of a page mean: color, number of color samples, alpha."""
    if 262 not in page.tags:
        raise ImageReadError(f"{path}: expected a stated photometric interpretation, got none. Export it again.")
    name = getattr(page.photometric, "name", page.photometric)
    if int(page.photometric) not in _COLORS or page.imagedepth != 1:
        raise ImageReadError(f"{path}: expected gray, RGB, palette or CMYK values, got {name}. Export it as 8-bit RGB.")
    compression = int(page.compression)
    if page.photometric == _PHOTOMETRIC.YCBCR and compression not in _JPEG:
        raise ImageReadError(
            f"{path}: expected YCbCr colors in JPEG compression only, got "
            f"{getattr(page.compression, 'name', compression)}. Export it as 8-bit RGB."
        )
    if page.photometric == _PHOTOMETRIC.SEPARATED and page.tags.valueof(332, 1) != 1:
        raise ImageReadError(f"{path}: expected CMYK inks, got others. Export it as 8-bit RGB.")
    color, samples = _COLORS[int(page.photometric)]
    extra = page.samplesperpixel - samples
    meanings = page.tags.valueof(338, ())
    meanings = tuple(meanings) if isinstance(meanings, tuple | list) else (meanings,)
    if pages > 1:
        if color != "gray" or page.samplesperpixel != 1:
            raise ImageReadError(f"{path}: expected a gray page per channel, got {name} of {page.samplesperpixel}.")
        return "rgb", 3, None
    if extra < 0 or extra > 1 or (extra == 1 and color in ("palette", "cmyk")):
        raise ImageReadError(
            f"{path}: expected {samples} samples a pixel for {name}, got {page.samplesperpixel}. {CHANNEL_ADVICE}"
        )
    if not extra:
        return color, samples, None
    if len(meanings) != 1:
        raise ImageReadError(
            f"{path}: expected the meaning of sample {samples + 1} of {samples + 1} to be stated (ExtraSamples), got "
            f"none. {CHANNEL_ADVICE}"
        )
    if meanings[0] == 1:
        return color, samples, "premultiplied"
    if meanings[0] == 2:
        return color, samples, "straight"
    if meanings[0] == 0 and samples == 3:  # unspecified: not a color, and not transparency
        return color, samples, None
    raise ImageReadError(
        f"{path}: expected sample {samples + 1} of {samples + 1} to be transparency, got one that is stated to be "
        f"something else (ExtraSamples {meanings[0]}). {CHANNEL_ADVICE}"
    )


def channel_samples(path: Path, pages: tuple[tifffile.TiffPage, ...]) -> int:
    """Number of samples of all pages together, each of which is a channel.

    Raises:
        ImageReadError: They are no gray or RGB values, with or without further samples.
    """
    page = pages[0]
    name = getattr(page.photometric, "name", page.photometric)
    if color_of(page) not in ("gray", "rgb") or page.imagedepth != 1:
        raise ImageReadError(f"{path}: expected gray values of several channels, got {name}. Export it again.")
    if len(pages) > 1 and page.samplesperpixel != 1:
        raise ImageReadError(f"{path}: expected a gray page per channel, got {name} of {page.samplesperpixel}.")
    return len(pages) * page.samplesperpixel


def sample_type(path: Path, page: tifffile.TiffPage) -> tuple[int, str]:
    """Bits and kind of the samples, where pages can be decoded at all."""
    compression = int(page.compression)
    name = getattr(page.compression, "name", str(compression))
    try:
        known = compression == 1 or (compression != _OLD_JPEG and tifffile.TIFF.DECOMPRESSORS[compression] is not None)
    except KeyError:
        known = False
    if not known:
        raise ImageReadError(
            f"{path}: expected a compression that can be read, got {name} (TIFF compression {compression}), which is "
            "not supported. The file may well be sound: export it with LZW, Deflate, JPEG or no compression."
        )
    bits, kinds = page.bitspersample, {1: "u", 2: "i", 3: "f", 4: "u"}
    if not isinstance(bits, int) or page.dtype is None or int(page.sampleformat) not in kinds:
        raise ImageReadError(
            f"{path}: expected samples of one type of whole numbers or floats, got {bits} bits of format "
            f"{getattr(page.sampleformat, 'name', page.sampleformat)}. Export it as 8-bit RGB."
        )
    return bits, kinds[int(page.sampleformat)]


def read_orientation(path: Path, page: tifffile.TiffPage) -> int:
    """The TIFF orientation of a page, 1 to 8."""
    orientation = page.tags.valueof(274, 1)
    if orientation not in range(1, 9):
        raise ImageReadError(f"{path}: expected an orientation of 1 to 8, got {orientation}. Export it again.")
    return int(orientation)


def read_palette(path: Path, page: tifffile.TiffPage, bits: int) -> npt.NDArray[np.uint8]:
    """The colors of the indices, (2^bits, 3)."""
    colors = page.colormap
    if colors is None or colors.shape != (3, 2**bits):
        raise ImageReadError(f"{path}: expected {2**bits} colors in the palette, got others. Export it as 8-bit RGB.")
    values = colors.T  # 16 bits, though some programs write 8
    return np.ascontiguousarray(values if values.max() < 256 else values >> 8).astype(np.uint8)
