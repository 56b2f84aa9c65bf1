"""Which version is in production, and the history of every change.

An alias ``production…`` names the requested version; the history names the version that was validated and is active.
Where the two differ, somebody changed the alias without microseg: a pending alias change, which has to be validated.

MLflow keeps no history of aliases, so each change is a run in a separate experiment: RUNNING while the change is
applied, FINISHED when it is done, FAILED when it was not applied or was reverted.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from mlflow.entities import Run

from microseg.errors import VersionNotFoundError
from microseg.registry.connection import Connection
from microseg.registry.decision import NEEDS_REVIEW, NOT_EVALUATED, OVERRIDDEN
from microseg.registry.model_card import fit_description
from microseg.registry.version import (
    CANDIDATE,
    MODEL_NAME,
    NOTE_TAG,
    PRODUCTION,
    TAG_LENGTH,
    ModelVersion,
    VersionRef,
    is_production,
    previous_of,
    production_of,
)
from microseg.registry.versions import Versions

__all__ = ["BY_TAG", "HISTORY_EXPERIMENT", "REASON_TAG", "AuditInfo", "PendingAliasChange", "Production", "Promotion"]

HISTORY_EXPERIMENT = "microseg-promotions"
REASON_TAG = "promotion_reason"
"""Tag that a person may set on a version before promoting it in MLflow, to state the reason."""
BY_TAG = "promoted_by"
"""Tag that a person may set on a version before promoting it in MLflow, which does not report the user."""

_PREFIX = "promotion."
_INTERRUPTED = timedelta(minutes=15)  # an entry that did not end within this time was interrupted
_REVERTED_NOTE = "NOT IN PRODUCTION"
_BY_A_PERSON = {OVERRIDDEN: "PROMOTED AGAINST THE GATE", NEEDS_REVIEW: "PROMOTED BY A PERSON, THE GATE COULD NOT TELL"}
_NOTE = re.compile(rf"\A({'|'.join((_REVERTED_NOTE, *_BY_A_PERSON.values()))}): [^\n]*\n\n")


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


_UNKNOWN = AuditInfo()
_GATE_SAID = {OVERRIDDEN: " The gate had refused it.", NEEDS_REVIEW: " The gate could not tell: a person promoted it."}


@dataclass(frozen=True)
class Promotion:
    """One entry of the history.

    Args:
        time: Start of the change, in UTC.
        alias: ``production`` or ``production-<lab>``.
        action: ``"promoted"``, ``"kept"`` (it suits a new lab), ``"rolled back"``, ``"removed"`` or ``"reverted"``.
        previous_version: The active version before; None if there was none.
        version: The requested version; None if the alias was removed.
        audit: Who, how and why.
        state: ``"done"``, ``"failed"`` (the active version did not change), ``"running"`` or ``"interrupted"``.
    """

    time: datetime
    alias: str
    action: str
    previous_version: int | None
    version: int | None
    audit: AuditInfo = field(default_factory=AuditInfo)
    state: str = "done"

    @property
    def active_version(self) -> int | None:
        """The active version afterwards."""
        return self.version if self.state == "done" else self.previous_version

    def __str__(self) -> str:
        lab = self.alias.removeprefix(f"{PRODUCTION}-")
        scope = "in production" if self.alias == PRODUCTION else f"in production for {lab}"
        before = f"version {self.previous_version}" if self.previous_version else "no version"
        if self.action == "reverted":
            text = f"Version {self.version} was reverted, {before} stays {scope}."
        elif self.action == "kept":
            text = f"Version {self.version} stays {scope}."
        elif self.version is None:
            text = f"The alias {self.alias} was removed from {before}."
        else:
            text = f"Version {self.version} is {scope}, before it was {before}."
            text += _GATE_SAID.get(self.audit.gate, "")
        return f"{text} {self.audit.reason}".rstrip()


@dataclass(frozen=True)
class PendingAliasChange:
    """An alias, or a legacy stage, that somebody changed without microseg, and that was not validated yet.

    Args:
        alias: ``production`` or ``production-<lab>``.
        requested_version: The version that has the alias; None if the alias was removed.
        active_version: The version in production; None if there was none.
        via: ``"mlflow"`` for an alias, ``"stage"`` for a legacy stage.
    """

    alias: str
    requested_version: int | None
    active_version: int | None
    via: str


class Production:
    """The versions in production, for all labs and for single labs.

    Args:
        connection: The connection to MLflow.
        versions: The versions of the registered model.
    """

    def __init__(self, connection: Connection, versions: Versions) -> None:
        self._connection = connection
        self._versions = versions

    def active(self, lab: str | None = None) -> ModelVersion:
        """Return the version for a lab's images: the lab's, if it has one, else that for all labs.

        Raises:
            VersionNotFoundError: There is neither.
        """
        if lab is not None:
            with suppress(VersionNotFoundError):
                return self._versions.find(production_of(lab))
        return self._versions.find(PRODUCTION)

    def promote(self, ref: VersionRef, *, alias: str = PRODUCTION, audit: AuditInfo = _UNKNOWN) -> ModelVersion:
        """Promote a version to production; the active one becomes ``previous``.

        The gate is not evaluated here: call `decide` before. Promoting the active version only removes its alias
        ``candidate``. A version that has the alias but is not in the history gets an entry.

        Args:
            ref: The version.
            alias: ``production``, or ``production-<lab>`` for the images of one lab.
            audit: Who, how and why.

        Returns:
            The version, now in production.
        """
        version = self._versions.find(ref)
        entry = self._last_applied(alias)
        before = self._active_before(entry, alias, version)
        if alias not in version.aliases or entry is None or entry.version != version.version:
            with self._recorded(alias, "promoted", before, version.version, audit):
                if before is not None and before != version.version:
                    self._versions.set_alias(previous_of(alias), before)  # first, so that an interruption can be undone
                if alias not in version.aliases:
                    self._versions.set_alias(alias, version)
        if CANDIDATE in version.aliases:
            self._versions.remove_alias(CANDIDATE)
        if alias == PRODUCTION:
            self._clear_stages(version.version)
        with self._connection.action("remove a tag") as client:
            for tag in {REASON_TAG, BY_TAG} & version.tags.keys():  # they are about this promotion only
                client.delete_model_version_tag(MODEL_NAME, str(version.version), tag)
        note = _BY_A_PERSON.get(audit.gate)
        reason = f"by {audit.by or 'unknown'}. {audit.reason or 'No reason was given.'}"
        self._set_note(version, f"{note}: {reason}" if note else "")
        return self._versions.find(version)

    def roll_back(self, *, alias: str = PRODUCTION, audit: AuditInfo = _UNKNOWN) -> ModelVersion | None:
        """Promote ``previous``.

        Afterwards there is no ``previous``: rolling back twice would otherwise return to the faulty version.

        Args:
            alias: ``production``, or ``production-<lab>``. If a lab has no previous version, its alias is removed, and
                the version for all labs is used again.
            audit: Who, how and why.

        Returns:
            The version, in production again; None if the lab uses the version for all labs again.

        Raises:
            VersionNotFoundError: There is no previous version.
        """
        entry = self._last_applied(alias)
        try:
            version = self._versions.find(previous_of(alias))
        except VersionNotFoundError:
            if alias == PRODUCTION or entry is None or entry.version is None:
                raise
            with self._recorded(alias, "rolled back", entry.version, None, audit):
                self._versions.remove_alias(alias)
            return None
        before = self._active_before(entry, alias, version)
        with self._recorded(alias, "rolled back", before, version.version, audit):
            self._versions.set_alias(alias, version)
        self._versions.remove_alias(previous_of(alias))
        if alias == PRODUCTION:
            self._clear_stages(version.version)
        return self._versions.find(version)

    def pending_changes(self) -> tuple[PendingAliasChange, ...]:
        """Return the aliases and legacy stages that differ from the history, except for changes in progress."""
        requested = {alias: number for alias, number in self._versions.aliases().items() if is_production(alias)}
        staged = [number for number in self._versions.in_production_stage() if number != requested.get(PRODUCTION)]
        history = self.history()
        found = []
        for alias in sorted({PRODUCTION, *requested, *(entry.alias for entry in history)}):
            last = next((entry for entry in history if entry.alias == alias), None)
            if last is not None and last.state == "running":
                continue
            entry = self._last_applied(alias)
            active = entry.version if entry else None
            if alias == PRODUCTION and staged:
                found.append(PendingAliasChange(alias, max(staged), active or requested.get(alias), "stage"))
            elif requested.get(alias) != active:
                found.append(PendingAliasChange(alias, requested.get(alias), active, "mlflow"))
        return tuple(found)

    def revert(self, change: PendingAliasChange, reason: str, *, audit: AuditInfo = _UNKNOWN) -> ModelVersion | None:
        """Revert a pending alias change, and state the reason in the description of the requested version.

        Args:
            change: The change.
            reason: Why the requested version is not valid for production.
            audit: Who, how and why.

        Returns:
            The active version; None if there was none before.
        """
        active, requested = self._existing(change.active_version), change.requested_version
        with self._recorded(change.alias, "reverted", change.active_version, requested, audit, applied=False):
            if active is not None:
                self._versions.set_alias(change.alias, active)
            elif change.via != "stage":
                self._versions.remove_alias(change.alias)
            if change.alias == PRODUCTION:
                self._clear_stages(active.version if active else None)
        if (version := self._existing(requested)) is not None:
            self._set_note(version, f"{_REVERTED_NOTE}: {reason}")
        return self._versions.find(active) if active else None

    def record_removal(self, change: PendingAliasChange, *, audit: AuditInfo = _UNKNOWN) -> None:
        """Record that somebody removed an alias; the version that had it becomes ``previous``."""
        with self._recorded(change.alias, "removed", change.active_version, None, audit):
            if (active := self._existing(change.active_version)) is not None:
                self._versions.set_alias(previous_of(change.alias), active)

    def record_kept(self, version: ModelVersion, lab: str, *, audit: AuditInfo = _UNKNOWN) -> None:
        """Record that a version in production was not adapted to a lab, because it suits the lab."""
        alias = production_of(lab) if production_of(lab) in version.aliases else PRODUCTION
        with self._recorded(alias, "kept", version.version, version.version, audit):
            pass

    def history(self, alias: str | None = None) -> tuple[Promotion, ...]:
        """Return all promotions, rollbacks, removals, reverted changes and kept versions, the newest first.

        Args:
            alias: Only those of this alias.
        """
        return self._entries(f"tags.`{_PREFIX}alias` = '{alias}'" if alias else "", 1000)

    # ---- the history in MLflow

    def _last_applied(self, alias: str) -> Promotion | None:
        """The last change of an alias that was applied; None if there is none."""
        applied = f"tags.`{_PREFIX}alias` = '{alias}' and attributes.status = 'FINISHED'"
        return next(iter(self._entries(applied, 1)), None)

    def _entries(self, condition: str, limit: int) -> tuple[Promotion, ...]:
        experiment_id = self._connection.experiment(HISTORY_EXPERIMENT)
        with self._connection.action("read the history") as client:
            order = ["attributes.start_time DESC"]
            runs = client.search_runs([experiment_id], condition, max_results=limit, order_by=order)
        return tuple(_read_entry(run) for run in runs if f"{_PREFIX}alias" in run.data.tags)

    @contextmanager
    def _recorded(
        self,
        alias: str,
        action: str,
        before: int | None,
        version: int | None,
        audit: AuditInfo,
        *,
        applied: bool = True,
    ) -> Iterator[None]:
        """Record a change that is made in the block; it is marked FAILED if the block raises, or if not applied."""
        old, new = (str(number or "–") for number in (before, version))
        values = {"alias": alias, "action": action, "from": old, "to": new, "by": audit.by or ""}
        values |= {"via": audit.via, "gate": audit.gate, "reason": audit.reason}
        tags = {_PREFIX + name: value[:TAG_LENGTH] for name, value in values.items()}
        tags |= {"mlflow.user": audit.by or "unknown", NOTE_TAG: audit.reason[:TAG_LENGTH]}
        experiment_id = self._connection.experiment(HISTORY_EXPERIMENT)
        with self._connection.action("record a promotion") as client:
            run_id = client.create_run(
                experiment_id, tags=tags, run_name=f"{alias}: {action} {old} → {new}"
            ).info.run_id
        try:
            yield
        except BaseException as error:
            with self._connection.action("record a failed promotion") as client:
                client.set_tag(run_id, f"{_PREFIX}error", f"{type(error).__name__}: {error}"[:TAG_LENGTH])
                client.set_terminated(run_id, "FAILED")
            raise
        with self._connection.action("record a promotion") as client:
            client.set_terminated(run_id, "FINISHED" if applied else "FAILED")

    # ---- helpers

    def _active_before(self, entry: Promotion | None, alias: str, version: ModelVersion) -> int | None:
        """The active version until now: that of the history, else the one with the alias or the legacy stage."""
        if entry is not None and self._existing(entry.version) is not None:
            return entry.version
        try:
            number = self._versions.find(alias).version
        except VersionNotFoundError:
            return None
        return None if number == version.version else number

    def _existing(self, number: int | None) -> ModelVersion | None:
        if number is not None:
            with suppress(VersionNotFoundError):  # deleted meanwhile
                return self._versions.find(number)
        return None

    def _clear_stages(self, keep: int | None) -> None:
        """Archive other versions in the legacy stage Production, so that a later one there is a new request."""
        for number in self._versions.in_production_stage():
            if number != keep:
                with warnings.catch_warnings(action="ignore"), self._connection.action("archive a version") as client:
                    client.transition_model_version_stage(MODEL_NAME, str(number), "Archived")

    def _set_note(self, version: ModelVersion, note: str) -> None:
        """Set, replace or remove the note above a version's model card."""
        card = _NOTE.sub("", version.description)
        description = fit_description(f"{' '.join(note.split())}\n\n{card}" if note else card)
        if description != version.description:
            with self._connection.action("describe a version") as client:
                client.update_model_version(MODEL_NAME, str(version.version), description=description)


def _read_entry(run: Run) -> Promotion:
    tags: Mapping[str, str] = {
        key.removeprefix(_PREFIX): value for key, value in run.data.tags.items() if key.startswith(_PREFIX)
    }
    start = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
    state = {"FINISHED": "done", "RUNNING": "running"}.get(run.info.status, "failed")
    if state == "running" and datetime.now(UTC) - start > _INTERRUPTED:
        state = "interrupted"
    before, version = (int(text) if (text := tags.get(key, "")).isdecimal() else None for key in ("from", "to"))
    audit = AuditInfo(tags.get("by") or None, tags.get("via", ""), tags.get("gate", ""), tags.get("reason", ""))
    return Promotion(start, tags["alias"], tags.get("action", "promoted"), before, version, audit, state)
