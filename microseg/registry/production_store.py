"""What the state machine of production reads and writes: the history, and the aliases in MLflow."""

import warnings
from collections.abc import Collection
from typing import TYPE_CHECKING, Protocol

from microseg.registry import notes
from microseg.registry.decision import NEEDS_REVIEW, OVERRIDDEN
from microseg.registry.transitions import AuditInfo, Entry
from microseg.registry.version import MODEL_NAME, PRODUCTION, is_candidate, previous_of

if TYPE_CHECKING:  # MLflow takes seconds
    from microseg.registry.connection import Connection
    from microseg.registry.history import History
    from microseg.registry.versions import Versions

__all__ = ["BY_TAG", "REASON_TAG", "MlflowStore", "ProductionStore"]

REASON_TAG = "promotion_reason"
"""Tag that a person may set on a version before promoting it in MLflow, to state the reason."""
BY_TAG = "promoted_by"
"""Tag that a person may set on a version before promoting it in MLflow, which does not report the user."""

_PERSON = {OVERRIDDEN: notes.AGAINST_GATE, NEEDS_REVIEW: notes.BY_A_PERSON}


class ProductionStore(Protocol):
    """What the state machine needs of a registry. Each call is one step, between which other processes may act."""

    def read(self) -> tuple[Entry, ...]:
        """Return all entries of the history, in order."""

    def append(self, entry: Entry) -> None:
        """Write an entry after all others."""

    def mark_applied(self, entry: Entry) -> None:
        """Record that the alias follows an entry."""

    def begin_move(self, entry: Entry, mover: str) -> None:
        """Record that a process is about to move the alias as an entry states."""

    def end_move(self, entry: Entry, mover: str) -> None:
        """Record that a process will not move the alias any more."""

    def aliases(self) -> dict[str, int]:
        """Return the version of each alias."""

    def staged(self) -> tuple[int, ...]:
        """Return the versions in the legacy stage Production."""

    def move_alias(self, alias: str, expected: int | None, version: int | None) -> None:
        """Set or remove an alias, if it is on the expected version."""

    def labs(self) -> Collection[str]:
        """Return the labs that the registry knows."""

    def author(self, version: int) -> str | None:
        """Return who promoted a version by hand, if that person has said so."""

    def show(self, entry: Entry, audit: AuditInfo, previous: int | None) -> None:
        """Show a decision at the versions: aliases of candidates and of the previous version, notes, stages.

        Args:
            entry: The decision.
            audit: Who, how and why.
            previous: The version to roll back to now.
        """


class MlflowStore:
    """The history and the aliases in MLflow.

    Args:
        connection: The connection to MLflow.
        versions: The versions of the registered model.
        history: The history.
    """

    def __init__(self, connection: "Connection", versions: "Versions", history: "History") -> None:
        self._connection, self._versions = connection, versions
        self.read, self.append, self.mark_applied = history.read, history.append, history.mark_applied
        self.begin_move, self.end_move = history.begin_move, history.end_move
        self.aliases, self.staged = versions.aliases, versions.in_production_stage

    def move_alias(self, alias: str, expected: int | None, version: int | None) -> None:
        """Set or remove an alias, if it is on the expected version.

        MLflow has no compare-and-set for aliases: a person who moves the alias between the two requests, some
        milliseconds, is not noticed.
        """
        if self.aliases().get(alias) != expected or version == expected:
            return
        if version is not None and self._versions.get(version) is None:  # deleted: its removal is a new request then
            version = None
        with self._connection.action(f"move the alias {alias!r}") as client:
            if version is None and expected is not None:
                client.delete_registered_model_alias(MODEL_NAME, alias)
            elif version is not None:
                client.set_registered_model_alias(MODEL_NAME, alias, str(version))

    def labs(self) -> Collection[str]:
        """Return the labs that versions were trained with."""
        return {lab for version in self._versions.all() for lab in version.datasets}

    def author(self, version: int) -> str | None:
        """Return the tag `BY_TAG` of a version."""
        found = self._versions.get(version)
        return found.tags.get(BY_TAG) if found else None

    def show(self, entry: Entry, audit: AuditInfo, previous: int | None) -> None:
        """See `ProductionStore.show`. Doing it twice does no harm."""
        version = None if entry.version is None else self._versions.get(entry.version)
        if entry.action in ("reverted", "ignored"):
            if version is not None:
                title = notes.REVERTED if entry.action == "reverted" else notes.IGNORED
                notes.set_note(self._connection, version, title, audit.reason)
        else:
            current = self.aliases().get(previous_of(entry.alias))
            self.move_alias(previous_of(entry.alias), current, None if previous is None else previous)
        if entry.action == "promoted" and version is not None:
            for alias in filter(is_candidate, version.aliases):
                self._versions.remove_alias(alias)
            with self._connection.action("remove a tag") as client:
                for tag in {REASON_TAG, BY_TAG} & version.tags.keys():  # they are about this promotion only
                    client.delete_model_version_tag(MODEL_NAME, str(version.version), tag)
            reason = f"by {audit.by or 'unknown'}. {audit.reason or 'No reason was given.'}"
            notes.set_note(self._connection, version, _PERSON.get(audit.gate, ""), reason)
        if entry.alias == PRODUCTION and entry.action != "ignored":
            self._clear_stages(entry.against if entry.action == "reverted" else entry.version)

    def _clear_stages(self, keep: int | None) -> None:
        """Archive other versions in the legacy stage Production, so that a later one there is a new request."""
        for number in self.staged():
            if number != keep:
                with warnings.catch_warnings(action="ignore"), self._connection.action("archive a version") as client:
                    client.transition_model_version_stage(MODEL_NAME, str(number), "Archived")
