"""Channels of images: which of them a network takes, and which of their values are black and white.

An image of several channels, such as fluorescence or imaging mass cytometry, is never flattened: its lab states in
``lab.yaml`` which channels are segmented. Up to three become the planes of an RGB image, 8 bits each, in the order in
which they are stated; a single one is gray. A plane can be the maximum of several channels of the file.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from microseg.errors import DataError, ImageReadError
from microseg.slides.color import scale_to_8_bits
from microseg.slides.slide import Slide

__all__ = [
    "CHANNEL_ADVICE",
    "MAX_CHANNELS",
    "RGB_NAMES",
    "Channel",
    "ChannelSlide",
    "Counts",
    "ReadOptions",
    "check_channel_names",
    "check_read_options",
    "compose",
    "fill_ranges",
    "find_channels",
    "is_automatic_name",
    "value_range",
]

MAX_CHANNELS = 3
"""Channels that a network takes, at most."""

RGB_NAMES = ("red", "green", "blue")
"""Names of the channels of an RGB image."""

CHANNEL_ADVICE = (
    "State in lab.yaml which channels are segmented, up to three, by the names or numbers that they have in the files, "
    "such as `channels: {nuclei: DAPI, membrane: 3}`."
)
"""What to do with an image of several channels."""

_PERCENTILES = 0.1, 99.9  # of the values that become black and white: a few dead or hot pixels do not decide

Range = tuple[float, float]

Counts = list[list[npt.NDArray[np.int64]]]
"""Of each source of each channel, how many pixels have each value, (65536,)."""


@dataclass(frozen=True)
class Channel:
    """One channel that a network takes.

    Attributes:
        name: Its name, which all labs of a segmenter share.
        sources: Names, or numbers from 1, of the channels of a file that it is the maximum of. Empty: the channel of
            that name; in files that name none, the one at the same place as in the list of all channels.
        ranges: Values of each source that become black and white; empty where they are to be measured, or values of 8
            bits are kept.
    """

    name: str
    sources: tuple[str | int, ...] = ()
    ranges: tuple[Range, ...] = ()


class ReadOptions(NamedTuple):
    """How the values of image files become 8-bit RGB.

    Attributes:
        bit_depth: Bits that hold the values of files of 16 bits that do not state fewer: 8, 10, 12, 14 or 16. None:
            measured in each file.
        channels: Channels that become red, green and blue. Empty: images are gray or RGB, and others are refused.
    """

    bit_depth: int | None = None
    channels: tuple[Channel, ...] = ()

    def to_record(self) -> dict[str, Any]:
        """Those that are stated, as JSON."""
        channels = [[each.name, list(each.sources), [list(pair) for pair in each.ranges]] for each in self.channels]
        return ({} if self.bit_depth is None else {"bit_depth": self.bit_depth}) | (
            {"channels": channels} if channels else {}
        )

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "ReadOptions":
        """Options from a mapping with what `to_record` returned."""
        channels = tuple(
            Channel(name, tuple(sources), tuple((low, high) for low, high in ranges))
            for name, sources, ranges in record.get("channels", ())
        )
        return cls(record.get("bit_depth"), channels)


def find_channels(path: Path, names: Sequence[str], channels: Sequence[Channel]) -> list[list[int]]:
    """Find the channels of a file.

    Args:
        path: The file, for messages.
        names: Names of its channels; empty strings where it states none.
        channels: Those that are asked for.

    Returns:
        Positions of the sources of each channel.

    Raises:
        ImageReadError: The file has no such channel, or several of that name.
    """
    unnamed, found = not any(names), []
    if unnamed and any(not each.sources for each in channels) and len(names) != len(channels):
        raise ImageReadError(
            f"{path}: expected {len(channels)} channels ({', '.join(each.name for each in channels)}), got "
            f"{len(names)} without names. State the number of each in lab.yaml, such as "
            "`channels: {nuclei: 2}`."
        )
    for place, channel in enumerate(channels):
        sources = channel.sources or ((place + 1,) if unnamed else (channel.name,))
        found.append([_position(path, names, source) for source in sources])
    return found


def _position(path: Path, names: Sequence[str], source: str | int) -> int:
    if isinstance(source, int):
        if 1 <= source <= len(names):
            return source - 1
    elif len(at := [n for n, name in enumerate(names) if name.strip().casefold() == source.strip().casefold()]) == 1:
        return at[0]
    stated = ", ".join(f"{n} {name!r}" if name else f"{n} (unnamed)" for n, name in enumerate(names[:40], start=1))
    raise ImageReadError(
        f"{path}: expected a channel {source!r}, found {len(names)}: {stated}. Correct `channels` in lab.yaml."
    )


def check_channel_names(expected: Sequence[str], stated: Sequence[str], whose: str) -> None:
    """Check that images have the channels that a network takes. A single channel is a gray image, whatever its name.

    Args:
        expected: Those of the network; empty for gray and RGB images.
        stated: Those of the images, likewise.
        whose: What the images are, for messages.

    Raises:
        DataError: They differ.
    """
    if tuple(expected) != tuple(stated) and max(len(expected), len(stated)) > 1:
        wanted, got = (", ".join(names) or "gray or RGB" for names in (expected, stated))
        raise DataError(
            f"Expected {whose} to have the channels that the network takes, in the same order ({wanted}), got {got}: "
            "correct channels in lab.yaml, or use another model."
        )


def check_read_options(expected: Sequence[str], options: ReadOptions | None) -> None:
    """Check the channels of images that are read with these options; see `check_channel_names`."""
    check_channel_names(expected, () if options is None else [each.name for each in options.channels], "images")


def compose(
    path: Path, values: npt.NDArray[Any], positions: Sequence[Sequence[int]], channels: Sequence[Channel]
) -> npt.NDArray[np.uint8]:
    """Make an RGB image of some channels.

    Args:
        path: The file, for messages.
        values: Stored samples: uint8, uint16, or floats.
        positions: Samples that each channel is the maximum of, see `find_channels`.
        channels: Those that become red, green and blue. Where their ranges are not stated, values of 8 bits are kept,
            and floats are in 0..1.

    Shape:
        values (h, w, S) → (h, w, 3)

    Raises:
        ImageReadError: Values are not in the range that is stated, or none is stated for values of 16 bits.
    """
    pixels = np.zeros((*values.shape[:2], 3), np.uint8)
    for number, (channel, sources) in enumerate(zip(channels, positions, strict=True)):
        ranges: Sequence[Range | None] = channel.ranges or [None] * len(sources)
        planes = [_scaled(path, values[..., at], each) for at, each in zip(sources, ranges, strict=True)]
        pixels[..., number] = np.maximum.reduce(planes)
    if len(channels) == 1:
        pixels[..., 1:] = pixels[..., :1]
    return pixels


def _scaled(path: Path, values: npt.NDArray[Any], stated: Range | None) -> npt.NDArray[np.uint8]:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ImageReadError(f"{path}: expected finite values, got some that are not. Export it again.")
    if stated is None and values.dtype.kind != "f" and values.dtype != np.uint8:
        raise ImageReadError(f"{path}: expected the range of values of {values.dtype}. State range in lab.yaml.")
    if stated is None:
        return scale_to_8_bits(path, values, None if values.dtype.kind == "f" else 8)
    if values.dtype == np.uint8 and stated[1] > 255:
        raise ImageReadError(
            f"{path}: expected values up to {stated[1]:g}, as in the lab's other images, got 8 bits. Export all images "
            "of a lab in the same way, or send this one under another lab name."
        )
    low, high = stated
    share = (values.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return np.asarray(np.rint(share.clip(0, 1) * 255), np.uint8)


def value_range(counts: npt.NDArray[np.integer]) -> Range:
    """Range of values that become black and white: the percentiles 0.1 and 99.9.

    Args:
        counts: Number of pixels with each value, 0 to 65535.

    Shape:
        (65536,)
    """
    total = np.cumsum(counts)
    low, high = (int(np.searchsorted(total, share / 100 * total[-1])) for share in _PERCENTILES)
    return float(low), float(max(high, low + 1))


def fill_ranges(channels: Sequence[Channel], measure: Callable[[], Counts | None]) -> tuple[Channel, ...]:
    """Measure the ranges of channels for which none are stated.

    Args:
        channels: The channels.
        measure: Counts the values of 16 bits of each source of each channel; None where values are of 8 bits.
    """
    counts = None if all(each.ranges for each in channels) else measure()
    if counts is None:
        return tuple(channels)
    return tuple(
        each if each.ranges else replace(each, ranges=tuple(map(value_range, found)))
        for each, found in zip(channels, counts, strict=True)
    )


def is_automatic_name(name: str) -> bool:
    """Whether the name of a channel says nothing: none, or a number that a program wrote, such as Channel:0:1."""
    return re.fullmatch(r"\s*(channel|ch|c)?[\s\d:_.-]*", name, re.IGNORECASE) is not None


class ChannelSlide(Slide):
    """Channels of a slide that is read as RGB.

    Args:
        slide: The slide; closed with this one.
        channels: Its channels red, green and blue, or 1 to 3, that are used.
    """

    def __init__(self, slide: Slide, channels: tuple[Channel, ...]) -> None:
        super().__init__(slide.path, slide.levels, slide.mpp)
        self._slide, self._channels = slide, channels
        self._positions = find_channels(slide.path, RGB_NAMES, channels)

    def close(self) -> None:
        """Close the slide."""
        self._slide.close()

    def decode_region(self, level: int, x: int, y: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        """Decode a region and choose its channels."""
        pixels = self._slide.decode_region(level, x, y, width, height)
        return compose(self.path, pixels, self._positions, self._channels)
