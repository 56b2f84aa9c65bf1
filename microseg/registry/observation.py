"""What a writer has read of the history and of the aliases, and the entries that it may write then."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from microseg.registry.production_store import ProductionStore
from microseg.registry.transitions import (
    Action,
    AuditInfo,
    Entry,
    PendingAliasChange,
    ProductionState,
    alias_changes,
    replay,
    unknown_aliases,
)

__all__ = ["Outcome", "Seen", "look"]

Outcome = Literal["active", "reverted", "superseded"]
"""Of a request; ``superseded`` by a later one."""

_UNKNOWN = AuditInfo()


@dataclass(frozen=True)
class Seen:
    """What a writer has read: its entries are void if another writer was first.

    Args:
        state: The state that the history states.
        aliases: The version of each alias.
        changes: The changes of aliases that the history does not know.
        late: Those of them that a slow process may have made, so that they are no requests.
        unknown: What is wrong with the aliases that only resemble one of production.
    """

    state: ProductionState
    aliases: Mapping[str, int]
    changes: tuple[PendingAliasChange, ...]
    late: tuple[PendingAliasChange, ...]
    unknown: Mapping[str, str]

    def changed(self, alias: str) -> bool:
        """Whether somebody has moved an alias, which the history does not know."""
        return any(change.alias == alias for change in self.changes)

    def moving(self, alias: str) -> bool:
        """Whether an alias does not follow the last decision yet, or was moved by a process that was late.

        No other decision may be written then: it would state where the alias was before it is moved, and would not
        move it from where it is.
        """
        result = self.state.of(alias).result
        return any(change.alias == alias for change in self.late) or (result is not None and not result.applied)

    @property
    def unreported(self) -> dict[str, str]:
        """What is wrong with the unknown aliases of which the history does not know that they are on their version."""
        return {
            alias: reason
            for alias, reason in self.unknown.items()
            if self.aliases[alias] not in self.state.of(alias).requested
        }

    def outcome(self, request: Entry) -> Outcome | None:
        """How a request ended; None if it was not decided yet."""
        now = self.state.of(request.alias)
        if now.request is not None and now.request.number == request.number:
            return None
        actions = {one.action for one in self.state.entries if one.request == request.number}
        return "superseded" if not actions else "reverted" if "reverted" in actions else "active"

    def entry(
        self,
        alias: str,
        action: Action,
        version: int | None,
        *,
        against: int | None = None,
        audit: AuditInfo = _UNKNOWN,
    ) -> Entry:
        """A new entry."""
        now, shown = self.state.of(alias), self.aliases.get(alias)
        if action == "requested":  # when a process that still moves the alias has ended
            shown = now.active if any(change.alias == alias for change in self.late) else now.shown(shown)
        return Entry(alias, action, version, after=now.last, against=against, shown=shown, audit=audit)

    def decision(self, request: Entry, action: Action, against: int | None, audit: AuditInfo) -> Entry:
        """A new entry that ends a request."""
        entry = self.entry(request.alias, action, request.version, against=against, audit=audit)
        return replace(entry, request=request.number)

    def observed(self, change: PendingAliasChange, author: Callable[[int], str | None]) -> Entry:
        """The entry that records a change of an alias.

        Args:
            change: The change.
            author: Returns who promoted a version by hand, if that person has said so.
        """
        request = self.state.of(change.alias).request
        if change.late is not None:
            reason = (
                f"The alias {change.alias!r} was set to {_version(change.requested_version)} by a process that was "
                "slower than a later change, or by a person at that time: if it was a person, set it again."
            )
            return self.entry(
                change.alias, "ignored", change.requested_version, audit=AuditInfo(via="mlflow", reason=reason)
            )
        if request is not None and change.withdrawn:
            last = next(entry for entry in reversed(self.state.entries) if entry.alias == change.alias)
            reason = "The alias was set back before the request was decided."
            if last.action == "ignored":  # then microseg has set it back
                reason = "The alias was moved away before the request was decided: if it still holds, set it again."
            audit = AuditInfo(via="mlflow", reason=reason)
            return self.decision(request, "reverted", self.state.in_use(change.alias), audit)
        by = None if change.requested_version is None else author(change.requested_version)
        audit = AuditInfo(by, change.via)
        return self.entry(change.alias, "requested", change.requested_version, audit=audit)


def look(store: ProductionStore, labs: Callable[[], Collection[str]]) -> Seen:
    """Read the history, then the aliases: what is written between is void.

    Args:
        store: The history and the aliases.
        labs: Returns the labs that exist besides those in the registry.
    """
    state, aliases, staged = replay(store.read()), store.aliases(), store.staged()
    unknown = unknown_aliases(state, aliases, labs())
    if unknown:
        unknown = unknown_aliases(state, aliases, {*labs(), *store.labs()})
    known = {alias: version for alias, version in aliases.items() if alias not in unknown}
    found = alias_changes(state, known, staged)
    changes = tuple(change for change in found if change.late is None)
    return Seen(state, aliases, changes, tuple(change for change in found if change.late is not None), unknown)


def _version(number: int | None) -> str:
    return "none" if number is None else f"version {number}"
