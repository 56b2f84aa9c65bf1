"""Image files to arrays, and back.

How each kind of file becomes a uint8 RGB image:

===========================  =======================================================================================
gray, 1-bit                  the same value in all three channels
palette                      the palette's colors
with transparency            composited over white, the background of a brightfield slide
CMYK                         converted to RGB; color profiles are not applied
16 bits (PNG, TIFF)          scaled by the bit depth that the file states (OME ``SignificantBits``), that is given, or
                             the smallest of 8, 10, 12, 14 and 16 bits that holds the 99.9th percentile of the values
10, 12, 14 bits (TIFF)       scaled by their own depth
float TIFF                   0..1 is scaled to 0..255; anything outside 0..1 is refused
EXIF or TIFF orientation     applied
several channels             those that are stated in ``lab.yaml`` (see `microseg.slides.channels`); otherwise refused
several images in one file   refused; reduced resolutions, thumbnails, label and macro images do not count, and pages
                             of three channels that nothing states to be other colors (OME, ImageJ) are RGB
a further sample             refused, unless it is stated to be transparency, or (RGB) to be of no meaning
truncated, broken checksum   refused, never filled in
===========================  =======================================================================================

TIFF files are read as `microseg.slides.tiff_layout` interprets them, whether as images, as slides, or as masks.
"""

import io
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from microseg.errors import DataError, ImageReadError
from microseg.files import atomic_write
from microseg.slides.channels import (
    RGB_NAMES,
    Channel,
    Counts,
    ReadOptions,
    compose,
    fill_ranges,
    find_channels,
)
from microseg.slides.color import measured_bit_depth, over_white, scale_to_8_bits
from microseg.slides.decoding import check_pixels, decode, is_deep_png, read_deep_png, read_errors
from microseg.slides.plain_png import read_plain_png
from microseg.slides.tiff_image import TiffImage
from microseg.slides.tiff_layout import is_tiff

__all__ = [
    "IMAGE_SUFFIXES",
    "channel_counts",
    "image_digest",
    "measured_depth",
    "read_image",
    "read_tiff_values",
    "write_png",
]

IMAGE_SUFFIXES: tuple[str, ...] = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


def read_image(path: Path | str, png: bytes | None = None, options: ReadOptions | None = None) -> npt.NDArray[np.uint8]:
    """Read an image file as RGB; the module's table lists how each kind is converted.

    Args:
        path: A PNG, JPEG, TIFF (also OME-TIFF) or BMP file, recognized by its content.
        png: Content of the file, where it is a PNG that was read already.
        options: Bit depth and channels; None: an image is gray or RGB, and its bit depth is measured.

    Shape:
        (H, W, 3)

    Returns:
        The pixels, 0..255, RGB.

    Raises:
        ImageReadError: The file is missing, empty, truncated, of another kind, has over ``MAX_PIXELS`` pixels, has not
            the channels of the options, or holds something that is not understood.
    """
    path, options = Path(path), options or ReadOptions()
    with read_errors(path, "an image"):
        if png is None and is_tiff(path):
            with TiffImage(path, options) as tiff:
                width, height = tiff.sizes[0]
                check_pixels(path, width * height)
                return tiff.rgb(0, 0, 0, width, height)
        if options.channels:
            return _read_channels(path, png, options.channels)
        if png is None and is_deep_png(path):
            values = read_deep_png(path)
            depth = options.bit_depth or _measured(values)
            scaled = scale_to_8_bits(path, values, depth)
            color = scaled[..., : scaled.shape[2] - (scaled.shape[2] % 2 == 0)]
            if scaled.shape[2] % 2 == 0:
                alpha = scale_to_8_bits(path, values[..., -1], 16)  # transparency always has the range of the file
                color = over_white(color, alpha)
            return np.ascontiguousarray(np.broadcast_to(color, (*color.shape[:2], 3)))
        if (plain := read_plain_png(path, png)) is not None:
            check_pixels(path, plain.size // 3)
            return plain
        image = decode(path, png)
        if image.has_transparency_data:
            rgba = np.asarray(image.convert("RGBA"))
            return over_white(rgba[..., :3], rgba[..., 3])
        return np.array(image.convert("RGB"))


def _read_channels(path: Path, png: bytes | None, channels: tuple[Channel, ...]) -> npt.NDArray[np.uint8]:
    """Read channels of an image that is no TIFF: red, green and blue, or a gray one."""
    values = _channel_values(path, png)
    positions = _positions(path, values, channels)
    return compose(path, values, positions, fill_ranges(channels, lambda: _channel_counts(values, positions)))


def _positions(path: Path, values: npt.NDArray[Any], channels: tuple[Channel, ...]) -> list[list[int]]:
    return find_channels(path, RGB_NAMES if values.shape[2] == 3 else ("",), channels)


def _channel_values(path: Path, png: bytes | None = None) -> npt.NDArray[Any]:
    """Stored values of an image that is no TIFF, (H, W, 1 | 3)."""
    if png is None and is_deep_png(path):
        values: npt.NDArray[Any] = read_deep_png(path)
        transparent = values.shape[2] % 2 == 0
    else:
        image = decode(path, png)
        transparent = image.has_transparency_data
        values = np.asarray(image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB"))
        values = values.reshape(*values.shape[:2], -1)
    if transparent:
        raise ImageReadError(f"{path}: expected channels, got an image with transparency. Export it without.")
    return values


def _channel_counts(values: npt.NDArray[Any], positions: list[list[int]]) -> Counts | None:
    if values.dtype != np.uint16:
        return None
    return [[np.bincount(values[..., at].ravel(), minlength=2**16) for at in sources] for sources in positions]


def channel_counts(path: Path, channels: tuple[Channel, ...]) -> Counts | None:
    """Count the values of the channels of an image file.

    Args:
        path: An image file of any kind.
        channels: The channels.

    Returns:
        Counts of each source of each channel; None where the values are not of 16 bits.

    Raises:
        ImageReadError: The file cannot be read, or has not these channels.
    """
    with read_errors(path, "an image"):
        if is_tiff(path):
            with TiffImage(path, ReadOptions(channels=channels)) as tiff:
                return tiff.channel_counts()
        if not is_deep_png(path):
            return None
        values = _channel_values(path)
        return _channel_counts(values, _positions(path, values, channels))


def read_tiff_values(path: Path, *, every_page: bool = False) -> tuple[npt.NDArray[Any], bool]:
    """Read the stored samples of a TIFF, upright.

    Args:
        path: The file.
        every_page: Read a stack of gray pages, such as a mask with a page for each class.

    Shape:
        (H, W, samples)

    Returns:
        The samples, and whether they come from several pages, a sample from each.

    Raises:
        ImageReadError: It has over ``MAX_PIXELS`` pixels, or is not understood. Exceptions of decoders are not caught.
    """
    with TiffImage(path, every_page=every_page) as tiff:
        width, height = tiff.sizes[0]
        check_pixels(path, width * height)
        return tiff.values(0, 0, 0, width, height), len(tiff.layout.levels[0]) > 1


def measured_depth(path: Path) -> int | None:
    """Bit depth of a file of 16 bits that does not state fewer, measured; None for other files.

    Args:
        path: An image file of any kind.

    Raises:
        ImageReadError: The file cannot be read.
    """
    with read_errors(path, "an image"):
        if is_tiff(path):
            with TiffImage(path) as tiff:
                deep = tiff.layout.kind == "u" and tiff.layout.bits == 16 and tiff.layout.depth is None
                return tiff.measured_depth() if deep and tiff.layout.color != "cmyk" else None
        return _measured(read_deep_png(path)) if is_deep_png(path) else None


def image_digest(pixels: npt.NDArray[np.uint8]) -> str:
    """Hash the pixels of an image, independent of its file format.

    Args:
        pixels: An image or a mask.

    Shape:
        (H, W, 3) or (H, W)

    Returns:
        SHA-256 of the shape and the pixel values, 64 hexadecimal digits.
    """
    digest = sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def write_png(path: Path | str, array: npt.NDArray[np.uint8]) -> None:
    """Write an image or a mask as PNG, atomically.

    Args:
        path: The file to write; its folder exists.
        array: RGB pixels or class indices.

    Shape:
        (H, W, 3) for an image, (H, W) for a mask

    Raises:
        DataError: The array has another type or shape.
    """
    path = Path(path)
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)) or not array.size:
        raise DataError(
            f"{path}: expected uint8 of shape (H, W, 3) or (H, W), got {array.dtype} of shape {array.shape}. "
            "Convert it before writing."
        )
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(content, format="PNG")
    with atomic_write(path, content.tell()) as part:
        part.write_bytes(content.getbuffer())


def _measured(values: npt.NDArray[np.uint16]) -> int:
    color = values[..., : values.shape[2] - (values.shape[2] % 2 == 0)]
    return measured_bit_depth(np.bincount(color.ravel(), minlength=2**16))
