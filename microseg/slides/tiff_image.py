"""Regions of a TIFF file: its tiles and strips are decoded by tifffile and imagecodecs, as its layout tells."""

import math
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from microseg.errors import ImageReadError
from microseg.slides.channels import Channel, ReadOptions, compose, fill_ranges, find_channels
from microseg.slides.color import measured_bit_depth, over_white, scale_to_8_bits
from microseg.slides.tiff_layout import TiffLayout, read_layout
from microseg.slides.tiff_segments import check_complete, is_plain
from microseg.slides.tile_cache import TileCache

__all__ = ["TiffImage", "upright"]

_CACHE_BYTES = 2**25  # of decoded tiles and strips
_LARGE_BYTES = 2**22  # of a tile or strip; of such, one is decoded at a time, as each is in memory whole
_BAND = 2**22  # pixels that are converted at once
_SAMPLE, _SAMPLES = 256, 8  # side of a block, and blocks in each direction, in which the bit depth is measured

Values = npt.NDArray[Any]


class TiffImage:
    """The image of a TIFF file, and its reduced resolutions, by regions; several threads may read at once.

    Args:
        path: The file.
        options: How values become RGB; None for the defaults.
        every_page: See `read_layout`.

    Attributes:
        layout: How the pixels are stored.
        sizes: Width and height of each level, upright.

    Raises:
        ImageReadError: See `read_layout`; or the file is truncated.
    """

    def __init__(self, path: Path, options: ReadOptions | None = None, *, every_page: bool = False) -> None:
        self._path, self._options = path, options or ReadOptions()
        self._lock = threading.Lock()  # of the position in the file
        self._large = threading.Lock()
        self._cache = TileCache(_CACHE_BYTES)
        self._depth: int | None = None
        self._channels: tuple[Channel, ...] | None = None
        self._tiff = tifffile.TiffFile(path)
        try:
            self.layout: TiffLayout = read_layout(
                path, self._tiff, every_page=every_page, channels=bool(self._options.channels)
            )
            self._positions = find_channels(path, self.layout.names, self._options.channels)
            self._pages = self._needed_pages()
            for level in self.layout.levels:
                for page in level:
                    check_complete(path, page, self._tiff.filehandle.size)
        except BaseException:
            self.close()
            raise
        turned = self.layout.orientation >= 5
        sizes = [(level[0].imagewidth, level[0].imagelength) for level in self.layout.levels]
        self.sizes = [(h, w) if turned else (w, h) for w, h in sizes]

    def close(self) -> None:
        """Close the file."""
        self._tiff.close()

    def __enter__(self) -> "TiffImage":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def depth(self) -> int | None:
        """Bits that hold the values: stated by the file, given, or measured; None for floats."""
        if self.layout.kind == "f":
            return None
        if self.layout.depth is not None:
            return self.layout.depth
        given = self._options.bit_depth
        return given if given is not None else self.measured_depth()

    def measured_depth(self) -> int:
        """Bits that hold nearly all values; measured in the whole image, or in blocks of a large one."""
        if self._depth is None:
            self._depth = measured_bit_depth(self._counts([slice(self.layout.samples)])[0])
        return self._depth

    def channel_counts(self) -> list[list[npt.NDArray[np.int64]]] | None:
        """How often each source of each channel has each value, (65536,), as `measured_depth` looks; None where the
        values are not of 9 to 16 bits.
        """
        if self.layout.kind != "u" or not 8 < self.layout.bits <= 16:
            return None
        counts = iter(self._counts([slice(at, at + 1) for positions in self._positions for at in positions]))
        return [[next(counts) for _ in positions] for positions in self._positions]

    def _needed_pages(self) -> list[int]:
        """Pages of the channels that are read; all where the samples of a pixel are together, or none are chosen."""
        pages = range(len(self.layout.levels[0]))
        needed = sorted({at for positions in self._positions for at in positions})
        if len(pages) == 1 or not needed:
            return list(pages)
        self._positions = [[needed.index(at) for at in positions] for positions in self._positions]
        return needed

    def _counts(self, groups: Sequence[slice]) -> list[npt.NDArray[np.int64]]:
        """How often each group of samples has each value, (65536,), in the whole image, or in blocks of a large one."""
        width, height = self.sizes[0]
        counts = [np.zeros(2**16, np.int64) for _ in groups]
        xs, ys = _starts(width), _starts(height)
        if (len(xs) * len(ys) + 1) * _SAMPLE**2 >= width * height:
            xs, ys = range(0, width, _SAMPLE), range(0, height, _SAMPLE)
        for y in ys:
            for x in xs:
                block = self.values(0, x, y, min(_SAMPLE, width - x), min(_SAMPLE, height - y))
                for total, samples in zip(counts, groups, strict=True):
                    total += np.bincount(block[..., samples].ravel(), minlength=2**16)
        return counts

    def rgb(self, level: int, x: int, y: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        """Read a region as RGB; the arguments are those of `Slide.read_region`.

        Shape:
            (height, width, 3)

        Raises:
            ImageReadError: Samples that are not gray, RGB, palette or CMYK values of at most 16 bits, or floats.
        """
        layout = self.layout
        if layout.kind == "i" or (layout.kind == "u" and layout.bits > 16):
            raise ImageReadError(
                f"{self._path}: expected whole numbers of at most 16 bits from 0, in 0..65535, got "
                f"{layout.bits}-bit {'signed' if layout.kind == 'i' else 'unsigned'} numbers. Export it as 8-bit RGB."
            )
        pixels = np.empty((height, width, 3), np.uint8)
        rows = max(1, _BAND // width)  # so that the memory for deep values stays small
        page = layout.levels[level][0]
        segment = page.tilelength if page.is_tiled else page.rowsperstrip
        if segment * width <= 8 * _BAND:
            rows = max(segment, rows // max(1, segment) * segment)  # whole tiles, so that none is decoded twice
        for top in range(0, height, rows):
            values = self.values(level, x, y + top, width, min(rows, height - top))
            pixels[top : top + rows] = self._convert(values)
        return pixels

    def _convert(self, values: Values) -> npt.NDArray[np.uint8]:
        """Convert stored samples to RGB, (h, w, samples) → (h, w, 1 | 3)."""
        layout = self.layout
        if layout.names:
            if self._channels is None:
                self._channels = fill_ranges(self._options.channels, self.channel_counts)
            return compose(self._path, values, self._positions, self._channels)
        if layout.palette is not None:
            return np.asarray(layout.palette[values[..., 0].astype(np.uint16)], np.uint8)
        depth = self.depth
        if layout.color == "cmyk" and layout.bits == 16:
            depth = 16
        color = scale_to_8_bits(self._path, values[..., : layout.samples], depth)
        if layout.color == "white is zero":
            color = 255 - color
        if layout.color == "cmyk":
            ink, light = color[..., :3].astype(np.uint32), 255 - color[..., 3:].astype(np.uint32)
            color = (((255 - ink) * light + 127) // 255).astype(np.uint8)
        if layout.alpha is not None:
            full = None if layout.kind == "f" else layout.bits  # transparency always has the whole range
            color = over_white(color, scale_to_8_bits(self._path, values[..., layout.samples], full), layout.alpha)
        return color

    def values(self, level: int, x: int, y: int, width: int, height: int) -> Values:
        """Read the stored samples of a region, upright; the arguments are those of `Slide.read_region`.

        Shape:
            (height, width, samples)
        """
        orientation, (full_width, full_height) = self.layout.orientation, self.sizes[level]
        if orientation in (3, 4, 7, 8):
            y = full_height - y - height
        if orientation in (2, 3, 6, 7):
            x = full_width - x - width
        if orientation >= 5:
            x, y, width, height = y, x, height, width
        pages = [self.layout.levels[level][number] for number in self._pages]
        parts = [self._page_values(page, x, y, width, height) for page in pages]
        return upright(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2), orientation)

    def _page_values(self, page: tifffile.TiffPage, x: int, y: int, width: int, height: int) -> Values:
        """Read a region of a page as it is stored, (height, width, samples)."""
        separate = page.planarconfig == 2 and page.samplesperpixel > 1
        planes = page.samplesperpixel if separate else 1
        samples = 1 if separate else page.samplesperpixel
        assert page.dtype is not None
        out = np.empty((height, width, page.samplesperpixel), page.dtype)
        w, h = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, max(1, page.rowsperstrip))
        across, down = math.ceil(page.imagewidth / w), math.ceil(page.imagelength / h)
        plain = is_plain(page)
        for plane in range(planes):
            for row in range(y // h, (y + height - 1) // h + 1):
                top, bottom = max(y, row * h), min(y + height, (row + 1) * h)
                for column in range(x // w, (x + width - 1) // w + 1):
                    number = plane * across * down + row * across + column
                    left, right = max(x, column * w), min(x + width, (column + 1) * w)
                    if plain:
                        part = self._plain_rows(page, number, samples, top - row * h, bottom - row * h)
                        part = part[:, left:right]
                    else:
                        decode = partial(self._segment, page, number)
                        part = self._cache.get((page.offset, number), decode, least=page.samplesperpixel)
                        part = part[top - row * h : bottom - row * h, left - column * w : right - column * w]
                    out[top - y : bottom - y, left - x : right - x, plane * samples : (plane + 1) * samples] = part
        return out

    def _plain_rows(self, page: tifffile.TiffPage, number: int, samples: int, first: int, last: int) -> Values:
        """Rows of a strip that is not compressed, without reading the others."""
        assert page.dtype is not None
        row = page.imagewidth * samples * page.dtype.itemsize
        with self._lock:
            content = self._read(page.dataoffsets[number] + first * row, (last - first) * row)
        values = np.frombuffer(content, page.dtype.newbyteorder(self._tiff.byteorder))
        return values.reshape(last - first, page.imagewidth, samples)

    def _read(self, start: int, count: int) -> bytes:
        """Bytes of the file."""
        file = self._tiff.filehandle
        file.seek(start)
        return bytes(file.read(count))

    def _segment(self, page: tifffile.TiffPage, number: int) -> Values:
        """Decode a tile or strip, (rows, columns, samples)."""
        with self._lock:
            content, options = self._read(page.dataoffsets[number], page.databytecounts[number]), {}
            if int(page.compression) in (7, 34892, 33007):  # these, and `decode`, move the position in the file
                options = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
            decode = page.decode
        pixels = page.tilewidth * page.tilelength if page.is_tiled else page.imagewidth * page.rowsperstrip
        large = pixels * page.samplesperpixel * page.bitspersample // 8 > _LARGE_BYTES
        with self._large if large else nullcontext():
            decoded, _, _ = decode(content, number, **options)
        if decoded is None:
            raise ImageReadError(f"{self._path}: expected pixels in each tile, got an empty one. Export it again.")
        values: Values = np.asarray(decoded).reshape(decoded.shape[-4:])[0]
        if page.dtype == np.bool_ and values.dtype == np.uint8:  # of CCITT
            values = values != 0
        if page.dtype is not None and values.dtype != page.dtype:
            raise ImageReadError(
                f"{self._path}: expected {page.dtype} as the tags state, got {values.dtype} of the decoder. "
                "Export it again."
            )
        return values


def upright(values: Values, orientation: int) -> Values:
    """Turn pixels as a TIFF or EXIF orientation (1..8) asks for."""
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values


def _starts(length: int) -> range | list[int]:
    """Starts of some blocks along a side."""
    return sorted({max(0, (length - _SAMPLE) * each // (_SAMPLES - 1)) for each in range(_SAMPLES)})
