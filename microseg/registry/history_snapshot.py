"""The entries of the history in a file, so that a new process requests the new ones only."""

import logging
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from microseg.files import write_text_file
from microseg.registry.transitions import Entry

__all__ = ["read_snapshot", "write_snapshot"]

_log = logging.getLogger(__name__)

_ENTRIES = TypeAdapter(tuple[Entry, ...])


def read_snapshot(file: Path | None) -> tuple[Entry, ...]:
    """Return the entries of a snapshot; none if it cannot be used.

    It is a cache: the caller compares its last entry with that of the registry.
    """
    if file is None or not file.is_file():
        return ()
    try:
        entries = _ENTRIES.validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        _log.warning("%s is not used, the history is read from the registry: %s", file, error)
        return ()
    return entries if [entry.number for entry in entries] == list(range(1, len(entries) + 1)) else ()


def write_snapshot(file: Path | None, entries: tuple[Entry, ...]) -> None:
    """Write a snapshot; that it failed is logged."""
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text_file(file, _ENTRIES.dump_json(entries).decode())
    except OSError as error:
        _log.warning("%s could not be written: %s", file, error)
