"""The channels of ``lab.yaml``: reading, writing and merging them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from microseg.slides.channels import MAX_CHANNELS, Channel

__all__ = ["Channels", "dump_channels", "merge_channels", "parse_channels"]

_LARGEST = 1e30  # value of a range; also excludes infinity and NaN
_NAME = re.compile(r"[^\W_][\w +.-]{0,40}")  # they are in the names of columns

Channels = Sequence[str] | Mapping[str, Any]
"""Channels as ``lab.yaml`` states them, see `parse_channels`."""


def parse_channels(stated: Any) -> tuple[Channel, ...]:
    """Parse channels as ``lab.yaml`` states them.

    Args:
        stated: Names of channels; or a mapping of names to the names or numbers that the channels have in the files, to
            several of which the maximum is taken, or to a mapping with ``from`` (the same) and ``range`` (values that
            become black and white, or a list of them where there are several channels).

    Raises:
        ValueError: It is something else, there are too many, or two of one name.
    """
    if isinstance(stated, list) and all(isinstance(name, str) for name in stated):
        channels = [Channel(name.strip()) for name in stated]
    elif isinstance(stated, dict):
        channels = [_parse(str(name).strip(), value) for name, value in stated.items()]
    else:
        raise ValueError(f"expected names of channels, each with its name or number in the files, got {stated!r}")
    if len(channels) > MAX_CHANNELS:
        raise ValueError(
            f"expected up to {MAX_CHANNELS} channels, got {len(channels)}: choose those that show the classes, or take "
            "the maximum of several, such as `membrane: [CD44, PanCK]`"
        )
    if len({each.name.casefold() for each in channels}) < len(channels) or not all(it.name for it in channels):
        raise ValueError(f"expected a different name for each, got {', '.join(it.name for it in channels)}")
    if odd := [each.name for each in channels if not _NAME.fullmatch(each.name)]:
        raise ValueError(f"expected names of letters, digits, spaces and + - . _, got {', '.join(map(repr, odd))}")
    return tuple(channels)


def dump_channels(channels: Sequence[Channel]) -> dict[str, Any]:
    """Channels as `parse_channels` takes them."""
    return {channel.name: _dump(channel) for channel in channels}


def merge_channels(before: Sequence[Channel], now: Sequence[Channel]) -> tuple[Channel, ...]:
    """Channels of further images, with the ranges of the dataset; their files may name them otherwise.

    Args:
        before: Those of the dataset.
        now: Those of the further images; empty where they state none.

    Raises:
        ValueError: They have other names, another number of channels of the files, or other ranges.
    """
    if not now:
        return tuple(before)
    names = [", ".join(each.name for each in channels) or "gray or RGB" for channels in (before, now)]
    if names[0] != names[1]:
        raise ValueError(f"expected channels {names[0]} as in the dataset, got {names[1]}")
    for old, new in zip(before, now, strict=True):
        if (one := max(1, len(old.sources))) != (other := max(1, len(new.sources))):
            raise ValueError(
                f"expected channel {new.name} to be the maximum of {one} channels of the files as in the dataset, got "
                f"{other}"
            )
        if old.ranges and new.ranges and old.ranges != new.ranges:
            raise ValueError(
                f"expected channel {new.name} in the range {old.ranges} as in the dataset, got {new.ranges}"
            )
    return tuple(replace(new, ranges=new.ranges or old.ranges) for old, new in zip(before, now, strict=True))


def _parse(name: str, stated: Any) -> Channel:
    values = stated if isinstance(stated, dict) else {"from": stated}
    if unknown := sorted(map(str, set(values) - {"from", "range"})):
        raise ValueError(f"{name}: expected from and range, got {', '.join(unknown)}")
    found, stated_range = values.get("from"), values.get("range")
    sources = found if isinstance(found, list) else [] if found is None else [found]
    if not all(isinstance(it, str | int) and not isinstance(it, bool) and it != "" for it in sources):
        raise ValueError(f"{name}: expected the name or number of a channel in the files, got {found!r}")
    if stated_range is None:
        return Channel(name, tuple(sources))
    pairs = [stated_range] if _is_pair(stated_range) else stated_range
    if not isinstance(pairs, list) or len(pairs) != max(1, len(sources)) or not all(map(_is_pair, pairs)):
        raise ValueError(
            f"{name}: expected range as [black, white], one for each channel of the files, got {stated_range!r}"
        )
    return Channel(name, tuple(sources), tuple((float(low), float(high)) for low, high in pairs))


def _dump(channel: Channel) -> Any:
    sources = channel.sources[0] if len(channel.sources) == 1 else list(channel.sources)
    if not channel.ranges:
        return sources or {}
    ranges = [list(pair) for pair in channel.ranges]
    return ({"from": sources} if channel.sources else {}) | {"range": ranges[0] if len(ranges) == 1 else ranges}


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)) and value[0] < value[1]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
