"""OME-Zarr (NGFF 0.4 and 0.5): a folder, the same as a ZIP file, or at an address that a file states."""

import json
import math
import os
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt

from microseg.errors import ImageReadError
from microseg.slides.parts import ADDRESS_SUFFIX, ZARR_SUFFIXES, is_address_file, is_slide_folder
from microseg.slides.pixel_size import unit_microns, valid_mpp
from microseg.slides.slide import Level, Slide

__all__ = ["ZarrReader", "ZarrSlide", "address_sha256"]

_RGB = ("FF0000", "00FF00", "0000FF")
_WHOLE, _SIDE = 2**22, 256  # pixels of a coarsest level that is hashed as a whole, and side of a place of a larger one
_STACK = "Export the plane to be segmented as an image of its own."
_CHANNELS = "Export the channels to be segmented as gray or RGB."


class ZarrSlide(Slide):
    """An OME-Zarr image of one plane, gray or RGB, 8 bits; or of 16 bits with the range of each channel stated.

    Args:
        path: The folder or ZIP file; or the file with its address, see `microseg.slides.remote_zarr`.

    Raises:
        ImageReadError: It is no OME-Zarr image, or one that is not understood.
    """

    def __init__(self, path: Path) -> None:
        import zarr

        try:
            self._store = _open_store(path)
            group = zarr.open_group(self._store, mode="r")
            image, attributes = _image_group(path, group)
        except ImageReadError:
            raise
        except Exception as error:  # damaged files make it raise nearly anything
            if is_address_file(path) and isinstance(error, FileNotFoundError):
                raise self._store.nothing_found() from error
            raise ImageReadError(
                f"{path}: expected an OME-Zarr image, but it cannot be opened: {error or repr(error)}. Export or copy "
                "it again."
            ) from error
        scales = _multiscales(path, attributes)
        axes = [str(axis["name"] if isinstance(axis, dict) else axis) for axis in scales.get("axes", "tczyx")]
        if axes[-2:] != ["y", "x"]:
            raise ImageReadError(f"{path}: expected the axes … y, x, got {', '.join(axes)}. Export it again.")
        self._arrays: list[Any] = [image[entry["path"]] for entry in scales["datasets"]]
        if not is_address_file(path):  # where a missing chunk is found when it is read
            _check_complete(path, self._arrays)
        self._metadata = attributes
        first = self._arrays[0]
        sizes = dict(zip(axes, first.shape, strict=True))
        if extra := {axis: size for axis, size in sizes.items() if axis not in "cyx" and size != 1}:
            raise ImageReadError(f"{path}: expected one plane, got {extra}. {_STACK}")
        self._channels = sizes.get("c", 1)
        self._axes = axes
        self._ranges = _ranges(path, first.dtype, self._channels, attributes.get("omero", {}).get("channels", []))
        height, width = first.shape[-2:]
        levels = tuple(
            Level(array.shape[-1], array.shape[-2], (width / array.shape[-1] + height / array.shape[-2]) / 2)
            for array in self._arrays
        )
        super().__init__(path, levels, _mpp(scales))

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    def digest(self) -> str:
        """SHA-256 of the metadata, and of the pixels of the coarsest level: of a large one, those of 16 places."""
        number, level = len(self.levels) - 1, self.levels[-1]
        arrays = [[list(array.shape), list(array.chunks), str(array.dtype)] for array in self._arrays]
        hashed = sha256(json.dumps([self._metadata, arrays], sort_keys=True).encode())
        whole = level.width * level.height <= _WHOLE
        width, height = (level.width, level.height) if whole else (min(it, _SIDE) for it in (level.width, level.height))
        for y in sorted({(level.height - height) * step // 3 for step in range(4)}):
            for x in sorted({(level.width - width) * step // 3 for step in range(4)}):
                hashed.update(self.read_region(number, x, y, width, height).tobytes())
        return hashed.hexdigest()

    def decode_region(self, level: int, x: int, y: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        """Read a region of all channels."""
        index = tuple(slice(None) if axis == "c" else 0 for axis in self._axes[:-2])
        found = np.asarray(self._arrays[level][(*index, slice(y, y + height), slice(x, x + width))])
        if found.ndim == 2:
            found = found[None]
        if self._ranges is not None:
            low, high = (np.array(ends, np.float32)[:, None, None] for ends in self._ranges)
            found = np.rint(((found.astype(np.float32) - low) / (high - low)).clip(0, 1) * 255)
        pixels = np.moveaxis(found.astype(np.uint8), 0, 2)
        return np.ascontiguousarray(np.broadcast_to(pixels, (height, width, 3)))


class ZarrReader:
    """Opens OME-Zarr folders, ZIP files, and files with an address."""

    priority = 110
    suffixes = (*ZARR_SUFFIXES, ADDRESS_SUFFIX)
    folders = True

    def can_open(self, path: Path) -> bool:
        """Whether it is a folder with Zarr metadata, or a file with the ending of a zipped one or of an address."""
        if path.is_file():
            return path.name.lower().endswith(self.suffixes)
        return is_slide_folder(path) and any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs"))

    def open(self, path: Path) -> ZarrSlide:
        """Open the image."""
        return ZarrSlide(path)


def address_sha256(path: Path) -> str:
    """Hash a slide at an address by what it shows, wherever it lies; see `ZarrSlide.digest`.

    Args:
        path: The file with the address.

    Raises:
        ImageReadError: It cannot be read.
    """
    with ZarrSlide(path) as slide:
        return slide.digest()


def _open_store(path: Path) -> Any:
    import zarr

    if is_address_file(path):
        from microseg.slides.remote_zarr import open_address

        return open_address(path)
    return zarr.storage.ZipStore(path, mode="r") if path.is_file() else zarr.storage.LocalStore(path)


def _image_group(path: Path, group: Any) -> tuple[Any, dict[str, Any]]:
    """The group of the image, and its metadata; of one that bioformats2raw wrote the only series."""
    attributes = _metadata(group)
    if "bioformats2raw.layout" in attributes and "multiscales" not in attributes:
        if "0" not in group or "1" in group:  # they are numbered; a web server does not list them
            raise ImageReadError(
                f"{path}: expected one image, got {'several' if '0' in group else 'no'} series. {_STACK}"
            )
        group = group["0"]
        attributes = _metadata(group)
    return group, attributes


def _metadata(group: Any) -> dict[str, Any]:
    attributes = dict(group.attrs)
    return dict(attributes.get("ome", attributes))


def _multiscales(path: Path, attributes: dict[str, Any]) -> dict[str, Any]:
    if "plate" in attributes:
        raise ImageReadError(f"{path}: expected an image, got a plate. Give the image of each field on its own.")
    found = attributes.get("multiscales")
    if not isinstance(found, list) or len(found) != 1 or not found[0].get("datasets"):
        count = len(found) if isinstance(found, list) else "none"
        raise ImageReadError(f"{path}: expected one OME-Zarr image (multiscales), got {count}. Export it again.")
    return dict(found[0])


def _check_complete(path: Path, arrays: list[Any]) -> None:
    """Check that every chunk is there: one that is not would be read as black."""
    files = _count_files(path)
    for number, array in enumerate(arrays):
        sides = zip(array.shape, array.shards or array.chunks, strict=True)
        stored = math.prod(-(-size // max(1, side)) for size, side in sides)
        # Zarr goes through all chunks of the stated size, which can be any number
        missing = stored - files if stored > files else array.nchunks - array.nchunks_initialized
        if missing > 0:
            raise ImageReadError(
                f"{path}: expected all chunks of level {number}, missing {missing} of {array.nchunks}: they would be "
                "read as black. Copy it again; where nothing was lost, write it with write_empty_chunks."
            )


def _count_files(path: Path) -> int:
    if path.is_file():
        with ZipFile(path) as file:
            return len(file.infolist())
    return sum(len(names) for _, _, names in os.walk(path))


def _ranges(
    path: Path, dtype: Any, channels: int, stated: list[dict[str, Any]]
) -> tuple[list[float], list[float]] | None:
    """Lowest and highest value of each channel; None for 8 bits, which are kept as they are."""
    if channels not in (1, 3):
        raise ImageReadError(f"{path}: expected 1 (gray) or 3 (RGB) channels, got {channels}. {_CHANNELS}")
    if channels == 3:
        colors = [str(channel.get("color", default)).upper() for channel, default in zip(stated, _RGB, strict=False)]
        if colors and tuple(colors) != _RGB:
            raise ImageReadError(f"{path}: expected red, green and blue, got {', '.join(colors)}. {_CHANNELS}")
    if dtype == np.uint8:
        return None
    windows = [channel.get("window", {}) for channel in stated]
    if dtype != np.uint16 or len(windows) != channels or not all({"start", "end"} <= set(each) for each in windows):
        raise ImageReadError(
            f"{path}: expected 8 bits, or 16 with the range of each channel stated (omero, window), got {dtype}. "
            "Export it as 8-bit RGB, or with its ranges."
        )
    return [float(each["start"]) for each in windows], [float(each["end"]) for each in windows]


def _mpp(scales: dict[str, Any]) -> float | None:
    """Microns per pixel of the finest level."""
    axes, key = scales.get("axes", []), "coordinateTransformations"
    changes = [*scales["datasets"][0].get(key, []), *scales.get(key, [])]
    factors = [np.array(each["scale"], float) for each in changes if each.get("type") == "scale"]
    if not factors or not all(isinstance(axis, dict) for axis in axes):
        return None
    y, x = np.prod(factors, axis=0)[-2:]
    units = [unit_microns(str(axis.get("unit", ""))) for axis in axes[-2:]]
    return None if units[0] is None or units[1] is None else valid_mpp(float(x * units[1]), float(y * units[0]))
