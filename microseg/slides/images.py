"""Image files to arrays, and back.

How each kind of file becomes a uint8 RGB image:

===========================  =======================================================================================
gray, 1-bit                  the same value in all three channels
palette                      the palette's colors
with transparency            composited over white, the background of a brightfield slide
CMYK                         converted to RGB; color profiles are not applied
16-bit (PNG gray, TIFF)      scaled by the smallest of 8, 12, 14 and 16 bits that holds the largest value of the image
16-bit color PNG            scaled by 16 bits, as the PNG standard prescribes
float TIFF                   0..1 is scaled to 0..255; anything outside 0..1 is rejected
EXIF or TIFF orientation     applied
several pages                the first one; separate pages of three channels (OME, ImageJ) are one RGB image
truncated, broken checksum   rejected, never filled in
===========================  =======================================================================================
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps

from microseg.errors import DataError, ImageReadError
from microseg.files import atomic_write

__all__ = [
    "FORMATS",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "decode",
    "image_digest",
    "is_tiff",
    "over_white",
    "read_deep_tiff",
    "read_errors",
    "read_image",
    "scale_to_rgb",
    "write_png",
]

IMAGE_SUFFIXES: tuple[str, ...] = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_BIT_DEPTHS = (8, 12, 14, 16)


def read_image(path: Path | str, png: bytes | None = None) -> npt.NDArray[np.uint8]:
    """Read an image file as RGB; the module's table lists how each kind is converted.

    Args:
        path: A PNG, JPEG, TIFF (also OME-TIFF) or BMP file, recognized by its content.
        png: Content of the file, where it is a PNG that was read already.

    Shape:
        (H, W, 3)

    Returns:
        The pixels, 0..255, RGB.

    Raises:
        ImageReadError: The file is missing, empty, truncated, of another kind, or has over ``MAX_PIXELS`` pixels.
    """
    path = Path(path)
    with read_errors(path, "an image"):
        values = read_deep_tiff(path) if png is None else None
        if values is not None:
            return scale_to_rgb(path, values)
        image = decode(path, png)
        if image.has_transparency_data:
            return over_white(np.asarray(image.convert("RGBA")))
        if image.mode == "F" or image.mode.startswith("I"):
            return scale_to_rgb(path, np.asarray(image))
        return np.array(image.convert("RGB"))


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
    with atomic_write(path) as part:
        Image.fromarray(np.ascontiguousarray(array)).save(part, format="PNG")


@contextmanager
def read_errors(path: Path, what: str) -> Iterator[None]:
    """Raise an `ImageReadError` for any exception of a decoder; damaged files make them raise nearly anything."""
    try:
        if not path.is_file():
            raise ImageReadError(f"{path}: expected {what} file, found none. Check the path.")
        if path.stat().st_size == 0:
            raise ImageReadError(f"{path}: expected {what}, got an empty file (0 bytes). Export or copy it again.")
        yield
    except ImageReadError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path) from error
    except Exception as error:
        raise ImageReadError(
            f"{path}: expected {what} (PNG, JPEG, TIFF or BMP), but it cannot be read: {str(error) or repr(error)}. "
            "The file is damaged, truncated or of another kind; export or copy it again."
        ) from error


def decode(path: Path, content: bytes | None = None) -> Image.Image:
    """Decode with Pillow: truncated files are errors, and the orientation is applied.

    Args:
        path: The file.
        content: Its content, where it was read already.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # other libraries enable it, and then missing rows are gray
    with Image.open(path if content is None else io.BytesIO(content), formats=FORMATS) as image:
        _check_pixels(path, image.width * image.height)
        image.load()
        return ImageOps.exif_transpose(image)


def over_white(rgba: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Composite pixels with transparency over white, the background of a brightfield slide.

    Shape:
        (h, w, 4) → (h, w, 3)
    """
    if (rgba[..., 3] == 255).all():
        return np.ascontiguousarray(rgba[..., :3])
    layer = Image.fromarray(rgba, mode="RGBA")
    return np.array(Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB"), np.uint8)


def scale_to_rgb(path: Path, values: npt.NDArray[Any], highest: int | None = None) -> npt.NDArray[np.uint8]:
    """Scale values of any type to RGB; the module's table lists how.

    Args:
        path: The file, for messages.
        values: Gray, RGB or RGBA.
        highest: The image's largest value, where ``values`` is only a part of it; larger values are clipped.

    Shape:
        (H, W) or (H, W, 1 | 3 | 4) → (H, W, 3)

    Raises:
        ImageReadError: Another number of channels, or values out of range.
    """
    if values.ndim == 2:
        values = values[:, :, None]
    if values.shape[2] not in (1, 3, 4):
        raise ImageReadError(
            f"{path}: expected 1 (gray), 3 (RGB) or 4 (RGBA) channels, got {values.shape[2]}. "
            "Export a brightfield image as RGB; fluorescence channels are not supported."
        )
    lowest, highest = values.min(), values.max() if highest is None else highest
    if values.dtype.kind == "f":
        if not (lowest >= -1e-6 and highest <= 1 + 1e-6):
            raise ImageReadError(f"{path}: expected floats in 0..1, got {lowest}..{highest}. Export it as 8-bit RGB.")
        full = 1.0
    else:
        depth = next((depth for depth in _BIT_DEPTHS if highest < 2**depth), None)
        if lowest < 0 or depth is None:
            raise ImageReadError(
                f"{path}: expected whole numbers in 0..65535, got {lowest}..{highest}. Export it as 8-bit RGB."
            )
        full = float(2**depth - 1)
    scaled = values.clip(0).astype(np.float32) * np.float32(255 / full)  # (H, W, channels)
    if values.shape[2] == 4:
        alpha = scaled[:, :, 3:] / 255
        scaled = scaled[:, :, :3] * alpha + 255 * (1 - alpha)
    rounded = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return np.repeat(rounded, 3, axis=2) if rounded.shape[2] == 1 else rounded


MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs, about 13,400 squared


def _check_pixels(path: Path, pixels: float) -> None:
    """Reject an image before it is decoded, by the size in its header."""
    if pixels > MAX_PIXELS:
        raise _too_large(path)


def _too_large(path: Path) -> ImageReadError:
    return ImageReadError(
        f"{path}: expected at most {MAX_PIXELS:,} pixels, got more. Cut it into smaller regions; "
        "whole slides are read by segmentation, not as images."
    )


_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_tiff(path: Path) -> bool:
    """Whether a file is a TIFF, by its first bytes."""
    with path.open("rb") as file:
        return file.read(4) in _STARTS


def read_deep_tiff(path: Path) -> npt.NDArray[Any] | None:
    """Read a TIFF that Pillow cannot read exactly: over 8 bits, or one page per channel.

    Args:
        path: Any file.

    Shape:
        (H, W, channels)

    Returns:
        The values of the first image, upright; None where Pillow reads the file.

    Raises:
        ImageReadError: It is larger than can be read as a whole, or of neither gray nor RGB values. Exceptions of
            tifffile on damaged files are not caught.
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
        _check_pixels(path, max(page.imagewidth * page.imagelength, series.size / 4))
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
            import rasterio

            with rasterio.open(path) as raster:  # GDAL has the compressions for which tifffile needs imagecodecs
                values, axes = raster.read(), "SYX"
        orientation = page.tags.valueof(274, 1)
    for axis in axes:
        if axis not in "YXSC":
            values = values.take(0, axis=axes.index(axis))
            axes = axes.replace(axis, "", 1)
    values = values.transpose([axes.index(axis) for axis in "YXCS" if axis in axes])
    return _upright(values.reshape(*values.shape[:2], -1), orientation)  # (H, W, channels)


def _upright(values: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Apply the TIFF orientation tag (1..8)."""
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values
