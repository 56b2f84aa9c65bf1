"""OME-Zarr (NGFF 0.4 and 0.5): a folder, the same as a ZIP file, or at an address that a file states."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from microseg.errors import ImageReadError
from microseg.slides.channels import (
    CHANNEL_ADVICE,
    Channel,
    Counts,
    ReadOptions,
    compose,
    fill_ranges,
    find_channels,
)
from microseg.slides.parts import ADDRESS_SUFFIX, ZARR_SUFFIXES, is_slide_folder
from microseg.slides.pixel_size import unit_microns, valid_mpp
from microseg.slides.readers import ImageReader
from microseg.slides.slide import Level, Slide
from microseg.slides.zarr_image import ZarrImage

__all__ = ["ZarrReader", "ZarrSlide", "address_sha256"]

_RGB = ("FF0000", "00FF00", "0000FF")
_WHOLE, _SIDE = 2**22, 256  # pixels of a coarsest level that is hashed as a whole, and side of a place of a larger one
_STACK = "Export the plane to be segmented as an image of its own."
_DEEP = 16  # bits
_NO_COUNTS = np.zeros(2**16, np.int64)


class ZarrSlide(Slide):
    """An OME-Zarr image of one plane: gray or RGB, 8 bits, or 16 with the range of each channel stated; or any number
    of channels, of which some are chosen.

    Args:
        path: The folder or ZIP file; or the file with its address, see `microseg.slides.remote_zarr`.
        options: See `read_image`. Where no ranges are stated in them, those of the file are used.

    Raises:
        ImageReadError: It is no OME-Zarr image, or one that is not understood.
    """

    def __init__(self, path: Path, options: ReadOptions | None = None) -> None:
        self._image = ZarrImage(path)
        image, chosen = self._image, () if options is None else options.channels
        try:
            if chosen:
                if image.arrays[0].dtype.kind != "f" and not image.bits:
                    raise ImageReadError(
                        f"{path}: expected whole numbers from 0 of at most 16 bits, or floats, got "
                        f"{image.arrays[0].dtype}. Export it again."
                    )
                self._channels = fill_ranges(_with_stated_ranges(image, chosen), lambda: image.counts(chosen))
            else:
                _check_rgb(image)
                numbers = range(1, image.count + 1)
                self._channels = tuple(Channel(str(it), (it,), _stated_range(image, it - 1)) for it in numbers)
            positions = find_channels(path, image.names, self._channels)
            self._needed = sorted({at for sources in positions for at in sources})
            self._positions = [[self._needed.index(at) for at in sources] for sources in positions]
        except BaseException:
            image.close()
            raise
        height, width = image.arrays[0].shape[-2:]
        levels = tuple(
            Level(array.shape[-1], array.shape[-2], (width / array.shape[-1] + height / array.shape[-2]) / 2)
            for array in image.arrays
        )
        super().__init__(path, levels, _mpp(image.scales))

    def close(self) -> None:
        """Close the file."""
        self._image.close()

    def decode_region(self, level: int, x: int, y: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        """Read a region of the channels."""
        values = self._image.values(level, slice(y, y + height), slice(x, x + width), self._needed)
        return compose(self.path, values, self._positions, self._channels)


class ZarrReader(ImageReader):
    """Opens OME-Zarr folders, ZIP files, and files with an address."""

    priority = 110
    suffixes = (*ZARR_SUFFIXES, ADDRESS_SUFFIX)
    folders = True

    def can_open(self, path: Path) -> bool:
        """Whether it is a folder with Zarr metadata, or a file with the ending of a zipped one or of an address."""
        if path.is_file():
            return path.name.lower().endswith(self.suffixes)
        return is_slide_folder(path) and any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs"))

    def open(self, path: Path, options: ReadOptions | None = None) -> ZarrSlide:
        """Open the image."""
        return ZarrSlide(path, options)

    def channel_counts(self, path: Path, channels: tuple[Channel, ...]) -> Counts | None:
        """Count the values of the channels; None, too, where the file states the ranges of all."""
        with closing(ZarrImage(path)) as image:
            return None if all(it.ranges for it in _with_stated_ranges(image, channels)) else image.counts(channels)

    def mpp(self, path: Path) -> float | None:
        """Microns per pixel that the image states; None where it states none."""
        with closing(ZarrImage(path)) as image:
            return _mpp(image.scales)


def address_sha256(path: Path) -> str:
    """Hash a slide at an address by what it shows, wherever it lies: its metadata, and its coarsest level.

    Args:
        path: The file with the address.

    Raises:
        ImageReadError: It cannot be read.
    """
    with closing(ZarrImage(path)) as image:
        return image.digest()


def _check_rgb(image: ZarrImage) -> None:
    """Refuse what is not gray or RGB, of 8 bits, or of 16 with the range of each channel stated."""
    path, dtype = image.path, image.arrays[0].dtype
    if image.count not in (1, 3):
        raise ImageReadError(f"{path}: expected 1 (gray) or 3 (RGB) channels, got {image.count}. {CHANNEL_ADVICE}")
    if image.count == 3:
        pairs = zip(image.stated, _RGB, strict=False)
        colors = [str(channel.get("color", default)).upper() for channel, default in pairs]
        if colors and tuple(colors) != _RGB:
            raise ImageReadError(f"{path}: expected red, green and blue, got {', '.join(colors)}. {CHANNEL_ADVICE}")
    if image.bits != 8 and not (image.bits == _DEEP and all(_stated_range(image, at) for at in range(image.count))):
        raise ImageReadError(
            f"{path}: expected 8 bits, or 16 with the range of each channel stated (omero, window), got {dtype}. "
            "Export it as 8-bit RGB, or with its ranges."
        )


def _stated_range(image: ZarrImage, channel: int) -> tuple[tuple[float, float], ...]:
    """Range of the values of a channel that the file states; empty where there is none, or values are of 8 bits."""
    window = image.stated[channel].get("window", {}) if image.stated else {}
    if image.bits == 8 or not {"start", "end"} <= set(window):
        return ()
    return ((float(window["start"]), float(window["end"])),)


def _with_stated_ranges(image: ZarrImage, channels: Sequence[Channel]) -> tuple[Channel, ...]:
    """The channels with the ranges that the file states, where the lab states none."""
    filled = []
    for channel, positions in zip(channels, find_channels(image.path, image.names, channels), strict=True):
        stated = tuple(pair for at in positions for pair in _stated_range(image, at))
        filled.append(
            replace(channel, ranges=stated) if not channel.ranges and len(stated) == len(positions) else channel
        )
    return tuple(filled)


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
