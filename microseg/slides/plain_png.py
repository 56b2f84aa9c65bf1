"""Plain PNG, the usual image of a lab, in less than half the time of Pillow: 8-bit RGB, not interlaced."""

import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["read_plain_png"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_PIXELS = 2**24  # of an image, whose samples are in memory three times
_MOST_BYTES = 2**26  # of a file
# chunks that change no sample and no orientation; texts may hold EXIF or XMP
_HARMLESS = (b"IHDR", b"IDAT", b"IEND", b"pHYs", b"sRGB", b"gAMA", b"cHRM", b"tIME")
_STORED = 65535  # bytes of the largest block that DEFLATE stores as it is


def read_plain_png(path: Path, content: bytes | None = None) -> npt.NDArray[np.uint8] | None:
    """Read a PNG of 8-bit RGB.

    libdeflate decompresses it, in half the time of zlib; then libpng reverses the filters of the rows, for which the
    samples are packed as a PNG without compression.

    Args:
        path: The file.
        content: Its content, where it was read already.

    Shape:
        (H, W, 3)

    Returns:
        The pixels, the same as those of Pillow. None for a file of any other kind, one whose content is not in order in
        any way, and a large one: these are left to Pillow.
    """
    import imagecodecs

    if content is None:
        with path.open("rb") as file:
            header = file.read(29)
            if _size(header) is None or path.stat().st_size > _MOST_BYTES:
                return None
            content = header + file.read()
    size = _size(content)
    if size is None:
        return None
    width, height = size
    length = height * (1 + 3 * width)  # a row begins with its filter
    try:
        chunks = list(_chunks(content))
        if {kind for kind, _ in chunks} - set(_HARMLESS):
            return None
        samples = imagecodecs.deflate_decode(b"".join(data for kind, data in chunks if kind == b"IDAT"), out=length)
        if len(samples) != length:
            return None
        stored = [*_chunk(b"IHDR", [chunks[0][1]]), *_chunk(b"IDAT", _store(samples)), *_chunk(b"IEND", [])]
        pixels = np.asarray(imagecodecs.png_decode(b"".join([_SIGNATURE, *stored])))
    except (ValueError, RuntimeError):  # errors of `imagecodecs` are RuntimeErrors
        return None
    return pixels if pixels.shape == (height, width, 3) and pixels.dtype == np.uint8 else None


def _size(header: bytes) -> tuple[int, int] | None:
    """Width and height that a header states; None where it is not that of a plain PNG."""
    if len(header) < 29 or header[:16] != _SIGNATURE + b"\0\0\0\rIHDR":
        return None
    width, height, *kind = struct.unpack(">IIBBBBB", header[16:29])
    plain = kind == [8, 2, 0, 0, 0]  # bits, RGB, DEFLATE, adaptive filters, not interlaced
    return (width, height) if plain and 0 < width * height <= _MOST_PIXELS else None


def _chunks(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and data of each chunk.

    Raises:
        ValueError: A chunk is truncated, or its checksum is wrong.
    """
    view, start, kind = memoryview(content), len(_SIGNATURE), b""
    while kind != b"IEND":
        if start + 12 > len(view):
            raise ValueError("truncated")
        length = int.from_bytes(view[start : start + 4])
        kind, end = bytes(view[start + 4 : start + 8]), start + 8 + length
        if zlib.crc32(view[start + 4 : end]) != int.from_bytes(view[end : end + 4]) or end + 4 > len(view):
            raise ValueError("damaged")
        yield kind, view[start + 8 : end]
        start = end + 4


def _chunk(kind: bytes, data: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """A chunk, in parts: joined once with all others, large ones are not copied again and again."""
    checksum, length = zlib.crc32(kind), 0
    for part in data:
        checksum, length = zlib.crc32(part, checksum), length + len(part)
    return [length.to_bytes(4), kind, *data, checksum.to_bytes(4)]


def _store(data: bytes | bytearray) -> list[bytes | memoryview]:
    """Data in the format of zlib, not compressed, in parts."""
    view, parts = memoryview(data), [memoryview(b"\x78\x01")]
    for start in range(0, len(data), _STORED):
        block = view[start : start + _STORED]
        header = struct.pack("<BHH", start + _STORED >= len(data), len(block), len(block) ^ 0xFFFF)
        parts += [memoryview(header), block]
    return [*parts, zlib.adler32(data).to_bytes(4)]
