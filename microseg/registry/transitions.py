"""The state machine of production: requested → active, or reverted with the reason. Pure functions.

The history is a list of entries, numbered by the registry in the order in which they were written; clocks decide
nothing. Each entry states the last entry of its alias that its writer knew (`Entry.after`), and a decision the version
in use that the requested one was judged against. An entry of a writer who knew less than the history is void: `advance`
is the compare-and-set of every transition, and readers agree on its result, on whatever machine they are.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal
from uuid import uuid4

from microseg.registry.decision import NOT_EVALUATED
from microseg.registry.version import PRODUCTION, is_production, lab_of, production_of, resembles_production

__all__ = [
    "Action",
    "AliasState",
    "AuditInfo",
    "Entry",
    "PendingAliasChange",
    "ProductionState",
    "advance",
    "alias_changes",
    "replay",
    "unknown_aliases",
    "unsettled",
]

Action = Literal["requested", "promoted", "removed", "reverted", "rolled back", "kept", "ignored"]
"""Of an entry. ``promoted``, ``removed`` and ``reverted`` end a request; ``kept``: the version in use suits a new lab;
``ignored``: an alias that resembles one of production was set."""

_ENDS = ("promoted", "removed", "reverted")
_EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True)
class AuditInfo:
    """Who changed what is in production, how and why, as far as known.

    Args:
        by: User; None if unknown, as of an alias set in MLflow.
        via: Interface: ``"command"``, ``"mlflow"``, ``"stage"``, ``"prefect"``, ``"training"``, ``"demo"`` …
        gate: Status of the gate's decision: ``"accepted"``, ``"refused"``, ``"needs review"``, ``"overridden"`` or
            ``"not evaluated"``.
        reason: Free text.
    """

    by: str | None = None
    via: str = "command"
    gate: str = NOT_EVALUATED
    reason: str = ""


@dataclass(frozen=True)
class Entry:
    """One entry of the history.

    Args:
        alias: ``production`` or ``production-<lab>``.
        action: What happened.
        version: The requested, promoted, reverted or kept version; None: the alias is, or is to be, removed.
        after: Number of the last entry of this alias that the writer knew; 0 for none.
        against: The version in use for this alias that the version was judged against; None if there was none.
        request: Number of the request that the entry ends.
        shown: The version that had the alias in MLflow when the entry was written; None if none had it.
        audit: Who, how and why.
        id: Identity of the entry, the same if the registry stored it twice.
        number: Place in the history, from 1, given by the registry; 0 before.
        time: Time of the registry's clock; shown only.
        applied: Whether the alias in MLflow follows the entry.
        movers: Processes that began to move the alias as the entry states, and have not reported the end.
    """

    alias: str
    action: Action
    version: int | None
    after: int = 0
    against: int | None = None
    request: int | None = None
    shown: int | None = None
    audit: AuditInfo = field(default_factory=AuditInfo)
    id: str = field(default_factory=lambda: uuid4().hex)
    number: int = 0
    time: datetime = _EPOCH
    applied: bool = False
    movers: frozenset[str] = frozenset()


@dataclass(frozen=True)
class AliasState:
    """The state of one alias.

    Args:
        last: Number of its last valid entry.
        active: The version that batches use; None if there is none.
        previous: The version to roll back to.
        request: The request that was not decided yet.
        requested: Versions that were requested since the last decision.
        result: The last entry that decided which version has the alias.
        late: Former results that a process may still be applying: their numbers, and the version that it sets.
    """

    last: int = 0
    active: int | None = None
    previous: int | None = None
    request: Entry | None = None
    requested: frozenset[int | None] = frozenset()
    result: Entry | None = None
    late: Mapping[int, int | None] = field(default_factory=dict)

    def shown(self, version: int | None) -> int | None:
        """The version that an alias shows when what microseg does is finished.

        Args:
            version: The version that it shows now.
        """
        unfinished = self.result is not None and not self.result.applied and version == self.result.shown
        return self.active if unfinished else version


@dataclass(frozen=True)
class ProductionState:
    """The state of production after some entries of the history.

    Args:
        aliases: The state of each alias.
        entries: The valid entries, in order.
    """

    aliases: Mapping[str, AliasState] = field(default_factory=dict)
    entries: tuple[Entry, ...] = ()

    def of(self, alias: str) -> AliasState:
        """The state of an alias."""
        return self.aliases.get(alias, AliasState())

    def in_use(self, alias: str) -> int | None:
        """The version that an alias stands for: its own, or else, for a lab, that for all labs."""
        own = self.of(alias).active
        return self.of(PRODUCTION).active if own is None else own

    def has(self, entry: Entry) -> bool:
        """Whether an entry is valid."""
        return any(one.id == entry.id for one in reversed(self.entries))


def advance(state: ProductionState, entry: Entry) -> ProductionState | None:
    """Apply one entry.

    Returns:
        The state afterwards; None if the entry is void: another writer was first, or the version that it was judged
        against is not in use any more.
    """
    later = _advance(state, entry)
    return None if later is None else ProductionState({**state.aliases, entry.alias: later}, (*state.entries, entry))


def _advance(state: ProductionState, entry: Entry) -> AliasState | None:
    """The state of the entry's alias afterwards; None if the entry is void."""
    now = state.of(entry.alias)
    if entry.after != now.last:  # also of an entry that the registry stored twice
        return None
    request = now.request
    if entry.action in _ENDS:
        if request is None or (entry.request, entry.version) != (request.number, request.version):
            return None
        if entry.against != state.in_use(entry.alias):
            return None
    later = replace(now, last=entry.number)
    match entry.action:
        case "requested":
            later = replace(later, request=entry, requested=now.requested | {entry.version})
        case "promoted" | "removed":
            previous = now.active if now.active not in (None, entry.version) else now.previous
            later = replace(later, active=entry.version, previous=previous)
        case "rolled back":
            nothing = now.previous is None and (now.active is None or entry.alias == PRODUCTION)
            if nothing or (entry.against, entry.version) != (now.active, now.previous):
                return None
            later = replace(later, active=now.previous, previous=None)
        case "ignored":
            later = replace(later, requested=frozenset({entry.version}))
        case "kept":
            if entry.version != state.in_use(entry.alias):
                return None
    if entry.action in (*_ENDS, "rolled back"):
        late = {**now.late, now.result.number: now.active} if now.result and now.result.movers else now.late
        later = replace(later, request=None, requested=frozenset(), result=entry, late=late)
    return later


def replay(entries: Iterable[Entry]) -> ProductionState:
    """Apply all entries of the history, in the order of their numbers; void ones are left out."""
    aliases, valid = dict[str, AliasState](), list[Entry]()
    state = ProductionState(aliases)
    for entry in sorted(entries, key=lambda entry: entry.number):
        if (later := _advance(state, entry)) is not None:
            aliases[entry.alias] = later
            valid.append(entry)
    return ProductionState(aliases, tuple(valid))


def unsettled(entries: Iterable[Entry]) -> frozenset[int]:
    """Return the numbers of the decisions of which it may still change whether they are applied."""
    state = replay(entries)
    last = {now.result.number for now in state.aliases.values() if now.result is not None and not now.result.applied}
    return frozenset(last | {entry.number for entry in state.entries if entry.movers})


@dataclass(frozen=True)
class PendingAliasChange:
    """An alias, or a legacy stage, that somebody changed in MLflow: a request that was not decided yet.

    Args:
        alias: ``production`` or ``production-<lab>``.
        requested_version: The requested version; None if the alias was removed.
        active_version: The version that batches use for this alias alone; None if there is none.
        via: ``"mlflow"`` for an alias, ``"stage"`` for a legacy stage, or the interface of a recorded request.
        late: Number of a former decision that a slow process may have applied after a later one: then it cannot be told
            whether a person has moved the alias; None otherwise.
    """

    alias: str
    requested_version: int | None
    active_version: int | None
    via: str
    late: int | None = None

    @property
    def withdrawn(self) -> bool:
        """Whether the alias was set back to the active version before its change was decided."""
        return self.requested_version == self.active_version


def alias_changes(
    state: ProductionState, aliases: Mapping[str, int], staged: Collection[int] = ()
) -> tuple[PendingAliasChange, ...]:
    """Find the changes of aliases and legacy stages that the history does not know.

    Args:
        state: The state, read before the aliases: an entry that was written between is then unknown, and what is found
            here by mistake is void.
        aliases: The version of each alias, without the unknown ones.
        staged: The versions in the legacy stage Production.
    """
    found = []
    for alias in sorted({PRODUCTION, *filter(is_production, {*aliases, *state.aliases})}):
        now = state.of(alias)
        shown = now.shown(aliases.get(alias))
        expected = {now.active}
        if now.request is not None:
            expected = {now.request.shown, now.request.version}
        new = {number for number in staged if number not in (now.active, shown, *now.requested)}
        if shown not in expected:
            late = next((number for number, version in now.late.items() if version == shown != now.active), None)
            found.append(PendingAliasChange(alias, shown, now.active, "mlflow", late))
        elif alias == PRODUCTION and new:
            found.append(PendingAliasChange(alias, max(new), now.active, "stage"))
    return tuple(found)


def unknown_aliases(state: ProductionState, aliases: Mapping[str, int], labs: Collection[str]) -> dict[str, str]:
    """Find aliases that resemble one of production, and that nothing uses.

    Args:
        state: The state.
        aliases: The version of each alias.
        labs: Names of the labs that exist.

    Returns:
        What is wrong, by alias.
    """
    found = {}
    known = ", ".join(production_of(lab) for lab in sorted(labs)) or "none"
    for alias in aliases:
        if not resembles_production(alias) or state.of(alias).active is not None:
            continue
        if not is_production(alias):
            fault = f"the alias of production is spelled {PRODUCTION!r}, those of labs are {known}"
        elif (lab := lab_of(alias)) is not None and lab not in labs:
            fault = f"no lab {lab!r} is known, the aliases of labs are {known}"
        else:
            continue
        found[alias] = f"The alias {alias!r} changes nothing: {fault}."
    return found
