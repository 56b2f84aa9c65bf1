"""Moves of aliases as decisions state, by processes that may be slow, or killed at any time.

MLflow cannot move an alias only if the history has not changed, so a slow process may move it after a later decision.
It is known by its mark as a mover, and the alias is moved on: by itself, or else by another process with `move_back`.
"""

from dataclasses import replace
from uuid import uuid4

from microseg.registry.observation import Seen
from microseg.registry.production_store import ProductionStore
from microseg.registry.transitions import AuditInfo, Entry, PendingAliasChange, ProductionState, replay

__all__ = ["append_entry", "apply_decision", "full_audit", "move_back"]


def append_entry(store: ProductionStore, entry: Entry) -> Entry | None:
    """Write an entry of the history; None if it is void, as another writer was first."""
    store.append(entry)
    return next((one for one in reversed(replay(store.read()).entries) if one.id == entry.id), None)


def apply_decision(store: ProductionStore, decision: Entry) -> None:
    """Move the alias as a decision states, and show it at the versions; repeated if it was interrupted."""
    mover = uuid4().hex[:8]
    store.begin_move(decision, mover)
    state = replay(store.read())
    now = state.of(decision.alias)
    if now.result is not None and now.result.id == decision.id and not now.result.applied:
        store.move_alias(decision.alias, decision.shown, now.active)
        store.show(decision, full_audit(state, decision), now.previous)
        store.mark_applied(decision)
        _move_on(store, decision, now.active, mover)
    store.end_move(decision, mover)


def move_back(store: ProductionStore, seen: Seen, change: PendingAliasChange) -> None:
    """Move an alias back that a slow process may have moved, and record it: a person may have moved it, too."""
    if append_entry(store, seen.observed(change, store.author)) is None:
        return
    store.move_alias(change.alias, change.requested_version, change.active_version)
    decision = next(entry for entry in seen.state.entries if entry.number == change.late)
    store.end_move(decision, min(decision.movers))  # each process moves the alias once


def full_audit(state: ProductionState, decision: Entry) -> AuditInfo:
    """Who requested what was decided, with the decision's reason."""
    request = next((one for one in state.entries if one.number == decision.request), decision)
    return replace(request.audit, gate=decision.audit.gate, reason=decision.audit.reason)


def _move_on(store: ProductionStore, decision: Entry, shown: int | None, mover: str) -> None:
    """Move an alias that was moved to a version as a decision states to where later decisions have it by now.

    This may be late, too, so the process marks itself as a mover of each of them.
    """
    marked = [decision]
    while (last := replay(store.read()).of(decision.alias).result) is not None and last.id != marked[-1].id:
        store.begin_move(last, mover)
        marked.append(last)
        state = replay(store.read())
        now = state.of(decision.alias)
        if now.result is not None and now.result.id == last.id:
            store.move_alias(decision.alias, shown, now.active)
            store.show(last, full_audit(state, last), now.previous)
            shown = now.active
    for later in marked[1:]:
        store.end_move(later, mover)
