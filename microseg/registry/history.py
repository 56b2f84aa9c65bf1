"""The history of production, in MLflow.

MLflow keeps no history of aliases, and has no compare-and-set for them. The numbers of model versions are the only ones
that its server gives in order and never twice, so each entry is a version of a registered model of its own,
``microseg-promotions``, whose page in MLflow shows the history.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from microseg.errors import RegistryError
from microseg.registry.history_snapshot import read_snapshot, write_snapshot
from microseg.registry.transitions import Entry, ProductionState, replay, unsettled
from microseg.registry.version import PRODUCTION, TAG_LENGTH

if TYPE_CHECKING:  # MLflow takes seconds
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion

    from microseg.registry.connection import Connection

__all__ = ["HISTORY_MODEL", "History", "make_entry", "sort_entries"]

HISTORY_MODEL = "microseg-promotions"
"""Registered model whose versions are the entries of the history."""

_DESCRIPTION = (
    "The history of production of `microseg-segmenter`: each version is one entry, in order. Written by microseg; do "
    "not delete or edit versions."
)
_SOURCE = "microseg:///promotions"  # MLflow requires one; an entry has no files
_ENTRY_TAG, _APPLIED_TAG, _MOVER_TAG = "entry", "applied", "mover."
_RETRIES = 10
_SNAPSHOT_STEP = 20  # new entries after which the snapshot is written again


class History:
    """The entries of the history, in MLflow.

    Args:
        connection: The connection to MLflow.
        snapshot: File of the entries that were read, for later processes; None for none.
    """

    def __init__(self, connection: "Connection", snapshot: Path | None = None) -> None:
        self._connection, self._snapshot = connection, snapshot
        self._known: tuple[Entry, ...] = ()
        self._saved = 0  # entries in the snapshot

    def read(self) -> tuple[Entry, ...]:
        """Return all entries, void ones too, in order.

        Entries do not change, except that decisions are applied: only new entries, and decisions that were not applied
        completely when they were read last, are requested.

        Raises:
            RegistryError: An entry was deleted or changed, so that what is in production is not known.
        """
        known = self._known
        if not known:
            known = read_snapshot(self._snapshot)
            self._saved = len(known)
        entries = (self._newer(known) if known else None) or self._request(1)
        self._known = entries
        if len(entries) >= self._saved + _SNAPSHOT_STEP or len(entries) < self._saved:
            write_snapshot(self._snapshot, entries)
            self._saved = len(entries)
        return entries

    def _newer(self, known: tuple[Entry, ...]) -> tuple[Entry, ...] | None:
        """Return the known entries as they are now, with the new ones; None if the history was begun again."""
        found = self._request(len(known))
        if not found or found[0].id != known[-1].id:
            return None
        entries = [*known[:-1], *found]
        with self._connection.action("read the history") as client:
            for number in sorted(unsettled(known) - {len(known)}):
                entries[number - 1] = _read_entry(client.get_model_version(HISTORY_MODEL, str(number)))
        return tuple(entries)

    def _request(self, first: int) -> tuple[Entry, ...]:
        """Request all entries from a number on."""
        from microseg.registry.connection import all_pages

        newer = f" AND version_number >= {first}" if first > 1 else ""
        with self._connection.action("read the history") as client:
            found = all_pages(
                lambda token: client.search_model_versions(
                    f"name='{HISTORY_MODEL}'{newer}",
                    max_results=1000,
                    order_by=["version_number ASC"],
                    page_token=token,
                )
            )
        return sort_entries(map(_read_entry, found), first)

    def state(self) -> ProductionState:
        """Return the state after all entries."""
        return replay(self.read())

    def append(self, entry: Entry) -> None:
        """Write an entry after all others; read the state afterwards to see whether it is valid."""
        from mlflow.exceptions import MlflowException

        audit = entry.audit
        tags = {"alias": entry.alias, "change": entry.action, "version": str(entry.version or "none")}
        tags |= {"by": audit.by or "unknown", "via": audit.via, "gate": audit.gate, _ENTRY_TAG: _to_json(entry)}
        with self._connection.action("record a change of production") as client:
            for attempt in range(_RETRIES):
                try:
                    client.create_model_version(
                        HISTORY_MODEL,
                        source=_SOURCE,
                        tags=tags,
                        description=_describe(entry),
                        await_creation_for=0,
                    )
                except MlflowException as error:
                    if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                        self._create_model()
                    elif "Model Version creation error" not in str(error) or attempt + 1 == _RETRIES:
                        raise  # the message: other writers took this number three times
                else:
                    return

    def mark_applied(self, entry: Entry) -> None:
        """Record that the alias in MLflow follows an entry."""
        with self._connection.action("record a change of production") as client:
            client.set_model_version_tag(HISTORY_MODEL, str(entry.number), _APPLIED_TAG, "yes")

    def begin_move(self, entry: Entry, mover: str) -> None:
        """Record that a process is about to move the alias as an entry states."""
        with self._connection.action("record a change of production") as client:
            client.set_model_version_tag(HISTORY_MODEL, str(entry.number), f"{_MOVER_TAG}{mover}", "yes")

    def end_move(self, entry: Entry, mover: str) -> None:
        """Record that a process will not move the alias any more."""
        with self._connection.action("record a change of production") as client:
            client.delete_model_version_tag(HISTORY_MODEL, str(entry.number), f"{_MOVER_TAG}{mover}")

    def _create_model(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._connection.client.create_registered_model(HISTORY_MODEL, description=_DESCRIPTION)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # created by another process meanwhile
                raise


_WRITTEN = TypeAdapter(Entry)
_GIVEN = {"number", "time", "applied", "movers"}  # by the registry, or later


def _to_json(entry: Entry) -> str:
    text = _WRITTEN.dump_json(entry, exclude=_GIVEN).decode()
    reason = entry.audit.reason
    if len(text) <= TAG_LENGTH or not reason:
        return text
    reason = reason[: len(reason) * TAG_LENGTH // len(text) - 1]  # JSON writes some characters by two or six
    return _to_json(replace(entry, audit=replace(entry.audit, reason=reason)))


def _describe(entry: Entry) -> str:
    version = "none" if entry.version is None else f"version {entry.version}"
    return f"{entry.alias}: {entry.action} {version}. {entry.audit.reason}"[:TAG_LENGTH]


def sort_entries(entries: Iterable[Entry], first: int = 1) -> tuple[Entry, ...]:
    """Sort entries by their numbers.

    Args:
        entries: The entries from a number on.
        first: The number.

    Raises:
        RegistryError: One is missing.
    """
    found = sorted(entries, key=lambda entry: entry.number)
    numbers = {entry.number for entry in found}
    if missing := set(range(first, max(numbers, default=0) + 1)) - numbers:
        raise RegistryError(
            f"expected all entries of the history, the registered model {HISTORY_MODEL}: version {min(missing)} of "
            f"it was deleted, so what is in production is not known. Delete {HISTORY_MODEL} to begin the history "
            f"again with the version that has the alias {PRODUCTION} now"
        )
    return tuple(found)


def _read_entry(version: "MlflowVersion") -> Entry:
    return make_entry(int(version.version), version.creation_timestamp, version.tags)


def make_entry(number: int, created: int, tags: Mapping[str, Any]) -> Entry:
    """An entry from what MLflow stores.

    Args:
        number: Number of the version.
        created: Its time, in milliseconds.
        tags: Its tags.

    Raises:
        RegistryError: It is no entry.
    """
    try:
        entry = _WRITTEN.validate_json(tags.get(_ENTRY_TAG, ""))
    except ValidationError as error:
        raise RegistryError(
            f"expected an entry of the history in version {number} of the registered model {HISTORY_MODEL}, "
            f"got {error.errors()[0]['msg']}; restore its tag {_ENTRY_TAG!r}"
        ) from error
    time = datetime.fromtimestamp(created / 1000, UTC)
    movers = frozenset(tag.removeprefix(_MOVER_TAG) for tag in tags if tag.startswith(_MOVER_TAG))
    return replace(entry, number=number, time=time, applied=_APPLIED_TAG in tags, movers=movers)
