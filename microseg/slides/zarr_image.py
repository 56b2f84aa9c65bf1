"""An OME-Zarr image of one plane as it is stored: its levels, its channels, and what NGFF states of them."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt

from microseg.errors import ImageReadError
from microseg.slides.channels import Channel, Counts, find_channels, is_automatic_name
from microseg.slides.parts import is_address_file

__all__ = ["ZarrImage"]

_WHOLE, _SIDE = 2**22, 256  # pixels of a coarsest level that is hashed as a whole, and side of a place of a larger one
_STACK = "Export the plane to be segmented as an image of its own."
_DEEP = 16  # bits
_NO_COUNTS = np.zeros(2**16, np.int64)


class ZarrImage:
    """An OME-Zarr image of one plane, as it is stored.

    Attributes:
        path: Its file or folder.
        metadata: What NGFF states.
        scales: Its ``multiscales``.
        arrays: Its levels, the finest first.
        count: Number of channels.
        stated: What OMERO's metadata states of each channel; empty where it does not.
    """

    def __init__(self, path: Path) -> None:
        import zarr

        self.path = path
        try:
            self._store = _open_store(path)
            group = zarr.open_group(self._store, mode="r")
            image, self.metadata = _image_group(path, group)
        except ImageReadError:
            raise
        except Exception as error:  # damaged files make it raise nearly anything
            if is_address_file(path) and isinstance(error, FileNotFoundError):
                raise self._store.nothing_found() from error
            raise ImageReadError(
                f"{path}: expected an OME-Zarr image, but it cannot be opened: {error or repr(error)}. Export or copy "
                "it again."
            ) from error
        self.scales = _multiscales(path, self.metadata)
        axes = [str(axis["name"] if isinstance(axis, dict) else axis) for axis in self.scales.get("axes", "tczyx")]
        if axes[-2:] != ["y", "x"]:
            raise ImageReadError(f"{path}: expected the axes … y, x, got {', '.join(axes)}. Export it again.")
        self.arrays: list[Any] = [image[entry["path"]] for entry in self.scales["datasets"]]
        if not is_address_file(path):  # where a missing chunk is found when it is read
            _check_complete(path, self.arrays)
        sizes = dict(zip(axes, self.arrays[0].shape, strict=True))
        if extra := {axis: size for axis, size in sizes.items() if axis not in "cyx" and size != 1}:
            raise ImageReadError(f"{path}: expected one plane, got {extra}. {_STACK}")
        self.count, self._axes = sizes.get("c", 1), axes
        stated = self.metadata.get("omero", {}).get("channels", [])
        self.stated: list[dict[str, Any]] = stated if len(stated) == self.count else []

    @property
    def bits(self) -> int | None:
        """Bits of whole numbers from 0, 8 or 16; None for other values."""
        found: np.dtype[Any] = self.arrays[0].dtype
        return 8 * found.itemsize if found.kind == "u" and found.itemsize <= 2 else None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the channels; empty where none are stated, or some that say nothing."""
        labels = [str(channel.get("label") or "") for channel in self.stated] or [""] * self.count
        return tuple("" if is_automatic_name(label) else label for label in labels)

    def values(
        self, level: int, rows: slice, columns: slice, channels: Sequence[int] | None = None
    ) -> npt.NDArray[Any]:
        """Read a region of some channels; None for all.

        Shape:
            (rows, columns, channels)
        """
        one_by_one = channels is not None and len(channels) < self.count
        found = [
            np.asarray(self.arrays[level][(*(at if axis == "c" else 0 for axis in self._axes[:-2]), rows, columns)])
            for at in (channels if channels is not None and one_by_one else [slice(None)])
        ]
        if one_by_one:
            return np.stack(found, axis=2)
        return np.moveaxis(found[0], 0, 2) if found[0].ndim == 3 else found[0][..., None]

    def counts(self, channels: Sequence[Channel]) -> Counts | None:
        """See `microseg.slides.images.channel_counts`; of a large image as much as is hashed is looked at."""
        if self.bits != _DEEP:
            return None
        parts = [part.reshape(-1, self.count) for part in self._places()]
        found = find_channels(self.path, self.names, channels)
        return [
            [sum(np.bincount(part[:, at], minlength=2**16) for part in parts) + _NO_COUNTS for at in positions]
            for positions in found
        ]

    def digest(self) -> str:
        """SHA-256 of the metadata, and of the pixels of the coarsest level: of a large one, those of 16 places."""
        arrays = [[list(array.shape), list(array.chunks), str(array.dtype)] for array in self.arrays]
        hashed = sha256(json.dumps([self.metadata, arrays], sort_keys=True).encode())
        for part in self._places():
            hashed.update(np.ascontiguousarray(part).data)
        return hashed.hexdigest()

    def _places(self) -> Iterator[npt.NDArray[Any]]:
        """The pixels of the coarsest level: of a large one, those of 16 places."""
        number = len(self.arrays) - 1
        height, width = self.arrays[number].shape[-2:]
        h, w = (height, width) if width * height <= _WHOLE else (min(height, _SIDE), min(width, _SIDE))
        for y in sorted({(height - h) * step // 3 for step in range(4)}):
            for x in sorted({(width - w) * step // 3 for step in range(4)}):
                yield self.values(number, slice(y, y + h), slice(x, x + w))

    def close(self) -> None:
        """Close the file."""
        self._store.close()


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
