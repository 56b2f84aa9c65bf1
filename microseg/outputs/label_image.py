"""Label images of classes and of objects (OME-TIFF with pyramid levels), and class probabilities (TIFF)."""

import uuid
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from microseg.outputs.colors import color_table
from microseg.outputs.record import ImageInfo
from microseg.outputs.writers import MaskStrip, OutputWriter, Thumbnail
from microseg.threads import Threads

__all__ = ["InstanceImageWriter", "LabelImageWriter", "ProbabilitiesWriter"]

_TILE = 512  # side of the largest tile in pixels
_COMPRESSION = 5  # level of libdeflate, of 12
_ZLIB = 3  # level of zlib, of 9
_IN_MEMORY = 2**23  # bytes of a level's compressed tiles before they are moved to a temporary file
_BIG_TIFF = 2**31  # bytes of pixels from which a file may exceed the 4 GB of classic TIFF

Labels = npt.NDArray[np.uint8] | npt.NDArray[np.int32] | npt.NDArray[np.unsignedinteger]


class _Level:
    """Tiles of one pyramid level, compressed as soon as their rows are complete."""

    def __init__(self, width: int, height: int, tile: int, folder: Path, dtype: type[np.unsignedinteger]) -> None:
        self.width, self.height, self._tile = width, height, tile
        self._file = SpooledTemporaryFile(_IN_MEMORY, dir=str(folder))  # noqa: SIM115 (closed by `close`)
        self._lengths: list[int] = []
        self._rows = np.zeros((tile, -(-width // tile) * tile), dtype)
        self.filled = 0  # rows that are not in a tile yet

    def add(self, rows: Labels, threads: Threads) -> Iterator[Labels]:
        """Add rows, (n, W), and yield every second pixel of each completed row of tiles."""
        while len(rows):
            count = min(len(rows), self._tile - self.filled)
            self._rows[self.filled : self.filled + count, : self.width] = rows[:count]
            self.filled, rows = self.filled + count, rows[count:]
            if self.filled == self._tile:
                yield self.flush(threads)

    def flush(self, threads: Threads) -> Labels:
        """Compress the current rows as a row of tiles, and return every second pixel of them."""
        half = self._rows[: self.filled : 2, : self.width : 2].copy()
        columns = range(0, self._rows.shape[1], self._tile)
        for data in threads.map(_compress, (self._rows[:, left : left + self._tile] for left in columns)):
            self._file.write(data)
            self._lengths.append(len(data))
        self._rows[:] = 0
        self.filled = 0
        return half

    def tiles(self) -> Iterator[bytes]:
        """All compressed tiles, row by row."""
        self._file.seek(0)
        return (self._file.read(length) for length in self._lengths)

    def close(self) -> None:
        self._file.close()


class _Pyramid:
    """A tiled label image with levels of half the size each, down to one tile.

    Smaller levels hold every second pixel of the level before: labels cannot be averaged. The file has the pixel size,
    the model and version (OME ``Description``) and the names of the classes (OME ``MapAnnotation``).

    Args:
        path: File to write; temporary files are created beside it.
        image: The image.
        dtype: Type of the labels.
    """

    def __init__(self, path: Path, image: ImageInfo, dtype: type[np.unsignedinteger]) -> None:
        self._path, self._image, self._dtype = path, image, dtype
        height, width = image.mask_shape
        self._tile = min(_TILE, -(-max(width, height) // 16) * 16)  # TIFF requires multiples of 16
        self._levels: list[_Level] = []
        while not self._levels or max(self._levels[-1].width, self._levels[-1].height) > self._tile:
            self._levels.append(_Level(width, height, self._tile, path.parent, dtype))
            width, height = -(-width // 2), -(-height // 2)

    def add(self, rows: Labels, threads: Threads, number: int = 0) -> None:
        """Add rows to the finest level, and to the others as their rows are complete."""
        if number < len(self._levels):
            for half in self._levels[number].add(rows, threads):
                self.add(half, threads, number + 1)

    def write(self, kind: str, threads: Threads, **options: Any) -> None:
        """Write the file; options are those of tifffile. ``kind`` tells files of one image apart."""
        for number, level in enumerate(self._levels):
            if level.filled:
                self.add(level.flush(threads), threads, number + 1)
        mpp = self._image.label_mpp
        options |= {"tile": (self._tile, self._tile), "compression": "zlib", "dtype": self._dtype}
        classes = {str(index): name for index, name in enumerate(self._image.classes)}
        provenance = self._image.provenance
        origin = f"{self._image.source_sha256 or self._image.source} {provenance.model} {provenance.weights_sha256}"
        description = f"Segmented with {provenance.model}"
        metadata: dict[str, Any] = {"axes": "YX", "MapAnnotation": classes, "Description": description}
        metadata["UUID"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, origin + kind)}"  # the same file each time
        if mpp is not None:
            metadata |= {f"PhysicalSize{axis}": mpp for axis in "XY"}
            metadata |= {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
        first: dict[str, Any] = {"subifds": len(self._levels) - 1, "metadata": metadata, "software": "microseg"}
        size = self._levels[0].width * self._levels[0].height * np.dtype(self._dtype).itemsize
        with tifffile.TiffWriter(self._path, ome=True, bigtiff=size >= _BIG_TIFF) as tiff:
            for number, level in enumerate(self._levels):
                if mpp is not None:
                    options |= _resolution(mpp * 2**number)
                shape = (level.height, level.width)
                tiff.write(level.tiles(), shape=shape, **options, **({"subfiletype": 1} if number else first))

    def close(self) -> None:
        """Remove the temporary files."""
        for level in self._levels:
            level.close()


class LabelImageWriter(OutputWriter):
    """Writes the mask as a tiled label image with pyramid levels, the names of the classes and their colors."""

    suffix = ".labels.tif"

    def __init__(self, path: Path, image: ImageInfo, thumbnail: Thumbnail) -> None:
        super().__init__(path, image, thumbnail)
        self._pyramid = _Pyramid(path, image, np.uint8)

    def add_strip(self, strip: MaskStrip) -> None:
        """Add rows."""
        self._pyramid.add(strip.mask, self.threads)

    def finish(self) -> None:
        """Write the file."""
        colors = color_table().T.astype(np.uint16) * 257  # (3, 256), 0..65535
        self._pyramid.write("", self.threads, photometric="palette", colormap=colors)

    def close(self) -> None:
        """Remove the temporary files."""
        self._pyramid.close()


class InstanceImageWriter(OutputWriter):
    """Writes the number of the object at each pixel, 0 for none, as a tiled image with pyramid levels.

    The numbers are the labels of the table of objects. They have 16 bits; of more than 65,535 objects 32.
    """

    suffix = ".instances.tif"
    needs_labels = True
    _pyramid: _Pyramid | None = None

    def add_labels(self, labels: npt.NDArray[np.int32], count: int) -> None:
        """Add rows."""
        if self._pyramid is None:
            dtype = np.uint16 if count <= np.iinfo(np.uint16).max else np.uint32
            self._pyramid = _Pyramid(self.path, self.image, dtype)
        self._pyramid.add(labels, self.threads)

    def finish(self) -> None:
        """Write the file."""
        assert self._pyramid is not None, "an image has rows"
        self._pyramid.write(" instances", self.threads, photometric="minisblack")

    def close(self) -> None:
        """Remove the temporary files."""
        if self._pyramid is not None:
            self._pyramid.close()


class ProbabilitiesWriter(OutputWriter):
    """Writes the probabilities of all classes as a TIFF of 32-bit floats, one page per class; not for slides."""

    suffix = ".probabilities.tif"
    needs_probabilities = True

    def __init__(self, path: Path, image: ImageInfo, thumbnail: Thumbnail) -> None:
        super().__init__(path, image, thumbnail)
        self._strips: list[npt.NDArray[np.float32]] = []

    def add_strip(self, strip: MaskStrip) -> None:
        """Keep the probabilities."""
        assert strip.probabilities is not None
        self._strips.append(strip.probabilities)

    def finish(self) -> None:
        """Write the file."""
        values = self._strips[0] if len(self._strips) == 1 else np.concatenate(self._strips, axis=1)  # (K, H, W)
        options: dict[str, Any] = {} if self.image.label_mpp is None else _resolution(self.image.label_mpp)
        if max(values.shape) > 2048:
            options["tile"] = (_TILE, _TILE)
        metadata = {"classes": list(self.image.classes), "model": self.image.provenance.model}
        options |= {"photometric": "minisblack", "compression": "zlib", "software": "microseg", "metadata": metadata}
        tifffile.imwrite(self.path, values, **options)


def _compress(tile: npt.NDArray[np.unsignedinteger]) -> bytes:
    """A tile in zlib's format, by libdeflate where it is installed: smaller than by zlib, in half the time."""
    return _deflate(tile.tobytes()) if tile.any() else _deflate_zeros(tile.nbytes)


@cache
def _deflate_zeros(count: int) -> bytes:
    return _deflate(bytes(count))


def _deflate(data: bytes) -> bytes:
    try:
        from imagecodecs import deflate_encode
    except ImportError:
        return zlib.compress(data, _ZLIB)
    return bytes(deflate_encode(data, _COMPRESSION))


def _resolution(mpp: float) -> dict[str, Any]:
    """TIFF tags of a pixel size in microns."""
    return {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
