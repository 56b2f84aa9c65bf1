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
several images in one file   refused; reduced resolutions, thumbnails, label and macro images do not count, and pages
                             of three channels that nothing states to be other colors (OME, ImageJ) are RGB
a further sample             refused, unless it is stated to be transparency, or (RGB) to be of no meaning
truncated, broken checksum   refused, never filled in
===========================  =======================================================================================

TIFF files are read as `microseg.slides.tiff_layout` interprets them, whether as images, as slides, or as masks.
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
from microseg.slides.color import measured_bit_depth, over_white, scale_to_8_bits
from microseg.slides.plain_png import read_plain_png
from microseg.slides.tiff_image import TiffImage, upright
from microseg.slides.tiff_layout import is_tiff

__all__ = [
    "FORMATS",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "decode",
    "image_digest",
    "image_orientation",
    "is_deep_png",
    "measured_depth",
    "read_deep_png",
    "read_errors",
    "read_image",
    "read_tiff_values",
    "write_png",
]

IMAGE_SUFFIXES: tuple[str, ...] = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs, about 13,400 squared
_OTHERS = ("PNG", "JPEG", "BMP")  # TIFF is read by `TiffImage`
_PNG = b"\x89PNG\r\n\x1a\n"


def read_image(path: Path | str, png: bytes | None = None, bit_depth: int | None = None) -> npt.NDArray[np.uint8]:
    """Read an image file as RGB; the module's table lists how each kind is converted.

    Args:
        path: A PNG, JPEG, TIFF (also OME-TIFF) or BMP file, recognized by its content.
        png: Content of the file, where it is a PNG that was read already.
        bit_depth: Bits that hold the values of files of 16 bits that do not state fewer: 8, 10, 12, 14 or 16. None:
            measured in each file.

    Shape:
        (H, W, 3)

    Returns:
        The pixels, 0..255, RGB.

    Raises:
        ImageReadError: The file is missing, empty, truncated, of another kind, has over ``MAX_PIXELS`` pixels, or holds
            something that is not understood.
    """
    path = Path(path)
    with read_errors(path, "an image"):
        if png is None and is_tiff(path):
            with TiffImage(path, bit_depth) as tiff:
                width, height = tiff.sizes[0]
                _check_pixels(path, width * height)
                return tiff.rgb(0, 0, 0, width, height)
        if png is None and is_deep_png(path):
            values = read_deep_png(path)
            depth = bit_depth or _measured(values)
            scaled = scale_to_8_bits(path, values, depth)
            color = scaled[..., : scaled.shape[2] - (scaled.shape[2] % 2 == 0)]
            if scaled.shape[2] % 2 == 0:
                alpha = scale_to_8_bits(path, values[..., -1], 16)  # transparency always has the range of the file
                color = over_white(color, alpha)
            return np.ascontiguousarray(np.broadcast_to(color, (*color.shape[:2], 3)))
        if (plain := read_plain_png(path, png)) is not None:
            _check_pixels(path, plain.size // 3)
            return plain
        image = decode(path, png)
        if image.has_transparency_data:
            rgba = np.asarray(image.convert("RGBA"))
            return over_white(rgba[..., :3], rgba[..., 3])
        return np.array(image.convert("RGB"))


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
        _check_pixels(path, width * height)
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


def image_orientation(path: Path) -> int:
    """Orientation that a file states, 1 (upright) to 8, by its TIFF tag or EXIF; 1 where it states none."""
    try:
        if is_tiff(path):
            with TiffImage(path) as tiff:
                return tiff.layout.orientation
        with Image.open(path, formats=_OTHERS) as image:
            orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # what is wrong with the file is reported when it is read
        return 1
    return int(orientation) if orientation in range(1, 9) else 1


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
            f"{path}: expected {what} (PNG, JPEG, TIFF or BMP), but it cannot be read: {_one_line(error)}. "
            "The file is damaged, truncated or of another kind; export or copy it again."
        ) from error


def decode(path: Path, content: bytes | None = None) -> Image.Image:
    """Decode with Pillow: truncated files are errors, and the orientation is applied.

    Args:
        path: The file.
        content: Its content, where it was read already.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # other libraries enable it, and then missing rows are gray
    with Image.open(path if content is None else io.BytesIO(content), formats=_OTHERS) as image:
        _check_pixels(path, image.width * image.height)
        if image.format == "PNG" and (frames := getattr(image, "n_frames", 1)) > 1:
            raise ImageReadError(f"{path}: expected one image, got an animation of {frames}. Export one of them.")
        image.load()
        return ImageOps.exif_transpose(image)


def is_deep_png(path: Path) -> bool:
    """Whether a file is a PNG of 16 bits, by its header."""
    with path.open("rb") as file:
        header = file.read(25)
    return header[:8] == _PNG and header[24:25] == b"\x10"


def read_deep_png(path: Path) -> npt.NDArray[np.uint16]:
    """Read a PNG of 16 bits, upright. Exceptions of decoders are not caught.

    Shape:
        (H, W, 1 | 2 | 3 | 4): gray or RGB, with transparency after them where the file has some
    """
    import imagecodecs

    image = decode(path)  # checks sums, size and completeness, but keeps 8 bits of colors
    values = np.asarray(imagecodecs.png_decode(path.read_bytes()))
    if values.dtype != np.uint16:
        raise ImageReadError(f"{path}: expected 16 bits as its header states, got {values.dtype}. Export it again.")
    values = upright(values.reshape(*values.shape[:2], -1), image_orientation(path))
    if values.shape[1::-1] != image.size:
        raise ImageReadError(f"{path}: expected {image.size} pixels, got {values.shape[1::-1]}. Export it again.")
    return values


def _measured(values: npt.NDArray[np.uint16]) -> int:
    color = values[..., : values.shape[2] - (values.shape[2] % 2 == 0)]
    return measured_bit_depth(np.bincount(color.ravel(), minlength=2**16))


_ORIENTATION = 274  # EXIF and TIFF tag


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or repr(error)[:500]


def _check_pixels(path: Path, pixels: float) -> None:
    """Reject an image before it is decoded, by the size in its header."""
    if pixels > MAX_PIXELS:
        raise _too_large(path)


def _too_large(path: Path) -> ImageReadError:
    return ImageReadError(
        f"{path}: expected at most {MAX_PIXELS:,} pixels, got more. Cut it into smaller regions; "
        "whole slides are read by segmentation, not as images."
    )
