"""Which version is in use, and every way in which that changes: each of them leaves an entry in the history.

An alias ``production…`` says which version is asked for; the history says which one was found fit and settled. Where
the two differ somebody has moved the alias, and the version has yet to be looked at.
"""

import re
import warnings
from dataclasses import dataclass

from mlflow import MlflowClient

from microseg.errors import VersionNotFoundError
from microseg.registry.history import AuditInfo, last_applied, last_entry, read_history, recorded
from microseg.registry.lookup import find_version, registered_model, staged_versions
from microseg.registry.registration import fit_description
from microseg.registry.verdict import OVERRIDDEN
from microseg.registry.version import (
    CANDIDATE,
    MODEL_NAME,
    PRODUCTION,
    ModelVersion,
    VersionRef,
    is_production,
    previous_of,
)

__all__ = [
    "BY_TAG",
    "REASON_TAG",
    "PendingAliasChange",
    "pending_changes",
    "promote",
    "record_removal",
    "revert",
    "roll_back",
]

REASON_TAG = "promotion_reason"
"""A tag that a person may set on a version before promoting it in MLflow's page, to say why."""
BY_TAG = "promoted_by"
"""The same, to say who; MLflow does not tell."""

_PUT_BACK, _OVERRIDDEN = "NOT IN PRODUCTION", "PROMOTED AGAINST THE GATE"
_NOTE = re.compile(rf"\A({_PUT_BACK}|{_OVERRIDDEN}): [^\n]*\n\n")


@dataclass(frozen=True)
class PendingAliasChange:
    """An alias, or a legacy stage, that asks for another version than the one that was settled.

    Args:
        alias: ``production`` or ``production-<lab>``.
        version: What is asked for; None when the alias was removed.
        settled: What was in use until then; None when nothing was.
        via: ``"mlflow"`` for an alias, ``"stage"`` for a legacy stage.
    """

    alias: str
    version: int | None
    settled: int | None
    via: str


def pending_changes(client: MlflowClient, history_id: str) -> tuple[PendingAliasChange, ...]:
    """All that somebody has moved since the last promotions that were settled, but for those under way."""
    model = registered_model(client)
    if model is None:
        return ()
    asked = {alias: int(number) for alias, number in model.aliases.items() if is_production(alias)}
    known = {entry.alias for entry in read_history(client, history_id)}
    staged = [number for number in staged_versions(client) if number != asked.get(PRODUCTION)]
    found = []
    for alias in sorted({PRODUCTION, *asked, *known}):
        last = last_entry(client, history_id, alias)
        if last is not None and last.state == "running":
            continue
        entry = last_applied(client, history_id, alias)
        settled = entry.version if entry else None
        if alias == PRODUCTION and staged:
            found.append(PendingAliasChange(alias, max(staged), settled or asked.get(alias), "stage"))
        elif asked.get(alias) != settled:
            found.append(PendingAliasChange(alias, asked.get(alias), settled, "mlflow"))
    return tuple(found)


def promote(client: MlflowClient, history_id: str, ref: VersionRef, alias: str, cause: AuditInfo) -> ModelVersion:
    """Put a version into production; see `Registry.promote`."""
    version = find_version(client, ref)
    entry = last_applied(client, history_id, alias)
    before = _before(client, entry.version if entry else None, alias, version)
    if alias not in version.aliases or entry is None or entry.version != version.version:
        with recorded(
            client, history_id, alias=alias, action="promoted", before=before, version=version.version, cause=cause
        ):
            if before is not None and before != version.version:
                _set(client, previous_of(alias), before)  # first, so that an interruption leaves a way back
            if alias not in version.aliases:
                _set(client, alias, version.version)
    if CANDIDATE in version.aliases:
        client.delete_registered_model_alias(MODEL_NAME, CANDIDATE)
    if alias == PRODUCTION:
        _clear_stages(client, version.version)
    for tag in (REASON_TAG, BY_TAG):  # said of this promotion, not of the next
        if tag in version.tags:
            client.delete_model_version_tag(MODEL_NAME, str(version.version), tag)
    overridden = f"{_OVERRIDDEN}: by {cause.by or 'someone'}. {cause.reason or 'No reason was given.'}"
    _note(client, version, overridden if cause.gate == OVERRIDDEN else "")
    return find_version(client, version)


def roll_back(client: MlflowClient, history_id: str, alias: str, cause: AuditInfo) -> ModelVersion | None:
    """Put the version before back into production; see `Registry.roll_back`."""
    entry = last_applied(client, history_id, alias)
    try:
        version = find_version(client, previous_of(alias))
    except VersionNotFoundError:
        if alias == PRODUCTION or entry is None or entry.version is None:
            raise
        _end_of_own(client, history_id, alias, entry.version, cause)
        return None
    before = _before(client, entry.version if entry else None, alias, version)
    with recorded(
        client, history_id, alias=alias, action="rolled back", before=before, version=version.version, cause=cause
    ):
        _set(client, alias, version.version)
    client.delete_registered_model_alias(MODEL_NAME, previous_of(alias))
    if alias == PRODUCTION:
        _clear_stages(client, version.version)
    return find_version(client, version)


def _end_of_own(client: MlflowClient, history_id: str, alias: str, before: int, cause: AuditInfo) -> None:
    """Before its first own version a lab used everyone's: take its alias away."""
    with recorded(client, history_id, alias=alias, action="rolled back", before=before, version=None, cause=cause):
        client.delete_registered_model_alias(MODEL_NAME, alias)


def revert(
    client: MlflowClient, history_id: str, change: PendingAliasChange, cause: AuditInfo, refused: str
) -> ModelVersion | None:
    """Undo what somebody asked for, and say why where they will look; see `Registry.revert`."""
    settled = _existing(client, change.settled)
    with recorded(
        client,
        history_id,
        alias=change.alias,
        action="refused",
        before=change.settled,
        version=change.version,
        cause=cause,
        done=False,
    ):
        if settled is not None:
            _set(client, change.alias, settled.version)
        elif change.via != "stage":
            client.delete_registered_model_alias(MODEL_NAME, change.alias)
        if change.alias == PRODUCTION:
            _clear_stages(client, settled.version if settled else None)
    if (asked := _existing(client, change.version)) is not None:
        _note(client, asked, f"{_PUT_BACK}: {refused}")
    return find_version(client, settled) if settled else None


def record_removal(client: MlflowClient, history_id: str, change: PendingAliasChange, cause: AuditInfo) -> None:
    """Record that an alias was removed; see `Registry.record_removal`."""
    with recorded(
        client, history_id, alias=change.alias, action="withdrawn", before=change.settled, version=None, cause=cause
    ):
        if (settled := _existing(client, change.settled)) is not None:
            _set(client, previous_of(change.alias), settled.version)


def _before(client: MlflowClient, settled: int | None, alias: str, version: ModelVersion) -> int | None:
    """The version in use until now: the one settled last, else the one that has the alias or the legacy stage."""
    if _existing(client, settled) is not None:
        return settled
    try:
        number = find_version(client, alias).version
    except VersionNotFoundError:
        return None
    return None if number == version.version else number


def _existing(client: MlflowClient, number: int | None) -> ModelVersion | None:
    if number is None:
        return None
    try:
        return find_version(client, number)
    except VersionNotFoundError:  # somebody deleted it
        return None


def _set(client: MlflowClient, alias: str, number: int) -> None:
    client.set_registered_model_alias(MODEL_NAME, alias, str(number))


def _clear_stages(client: MlflowClient, keep: int | None) -> None:
    """See that no other version is in the legacy stage Production: one that is there later was put there."""
    for number in staged_versions(client):
        if number != keep:
            with warnings.catch_warnings(action="ignore"):  # that stages are going to go
                client.transition_model_version_stage(MODEL_NAME, str(number), "Archived")


def _note(client: MlflowClient, version: ModelVersion, text: str) -> None:
    """Put a note above a version's model card, in place of an earlier one; or take it away."""
    card = _NOTE.sub("", version.description)
    described = fit_description(f"{' '.join(text.split())}\n\n{card}" if text else card)
    if described != version.description:
        client.update_model_version(MODEL_NAME, str(version.version), description=described)
