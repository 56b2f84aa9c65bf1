"""The history of promotions, which MLflow does not keep: one run for each, in an experiment of their own.

So the history is where the models are, is seen in MLflow's page, and each entry is written at once: RUNNING while a
promotion is under way, FINISHED when it is done, FAILED when the version was refused.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from mlflow import MlflowClient
from mlflow.entities import Run

__all__ = ["HISTORY_EXPERIMENT", "AuditInfo", "Promotion", "last_applied", "last_entry", "read_history", "recorded"]

HISTORY_EXPERIMENT = "microseg-promotions"

_PREFIX = "promotion."
_TAG_CHARACTERS = 5000
_INTERRUPTED = timedelta(minutes=15)  # an entry that was not ended by then never will be


@dataclass(frozen=True)
class AuditInfo:
    """Why and by whom a version goes into production, as far as that is known.

    Args:
        by: Who; None where it cannot be known, as of a click in MLflow's page.
        via: Which way: ``"command"``, ``"mlflow"``, ``"stage"``, ``"prefect"``, ``"training"``, ``"demo"`` …
        gate: The gate's verdict on the version: ``"accepted"``, ``"refused, overridden"``, ``"not asked"`` …
        reason: In words.
    """

    by: str | None = None
    via: str = "command"
    gate: str = "not asked"
    reason: str = ""


@dataclass(frozen=True)
class Promotion:
    """One entry of the history.

    Args:
        when: When it began, in UTC.
        alias: ``production`` or ``production-<lab>``.
        action: ``"promoted"``, ``"rolled back"``, ``"withdrawn"`` or ``"refused"``.
        before: The version in use until then; None when there was none.
        version: The version asked for; None when it was withdrawn.
        cause: Why and by whom.
        state: ``"done"``, ``"failed"`` (the version in use did not change), ``"running"`` or ``"interrupted"``.
    """

    when: datetime
    alias: str
    action: str
    before: int | None
    version: int | None
    cause: AuditInfo = field(default_factory=AuditInfo)
    state: str = "done"

    @property
    def now(self) -> int | None:
        """The version in use afterwards."""
        return self.version if self.state == "done" else self.before


@contextmanager
def recorded(
    client: MlflowClient,
    experiment_id: str,
    *,
    alias: str,
    action: str,
    before: int | None,
    version: int | None,
    cause: AuditInfo,
    done: bool = True,
) -> Iterator[None]:
    """Write an entry while what it tells of is done in the block; FAILED when that raises.

    Args:
        client: Of the registry.
        experiment_id: Of the history.
        alias: See `Promotion`, as the following.
        action: What happens.
        before: The version in use until now.
        version: The version asked for.
        cause: Why and by whom.
        done: Whether the version is in use afterwards; False for a refusal.
    """
    arrow = f"{_number(before)} → {_number(version)}"
    facts = {"alias": alias, "action": action, "from": _number(before), "to": _number(version), "by": cause.by or ""}
    facts |= {"via": cause.via, "gate": cause.gate, "reason": cause.reason}
    tags = {_PREFIX + name: value[:_TAG_CHARACTERS] for name, value in facts.items()}
    tags |= {"mlflow.user": cause.by or "unknown", "mlflow.note.content": cause.reason[:_TAG_CHARACTERS]}
    run = client.create_run(experiment_id, tags=tags, run_name=f"{alias}: {action} {arrow}")
    try:
        yield
    except BaseException as error:
        client.set_tag(run.info.run_id, f"{_PREFIX}fault", f"{type(error).__name__}: {error}"[:_TAG_CHARACTERS])
        client.set_terminated(run.info.run_id, "FAILED")
        raise
    client.set_terminated(run.info.run_id, "FINISHED" if done else "FAILED")


def read_history(
    client: MlflowClient, experiment_id: str, alias: str | None = None, *, limit: int = 1000
) -> tuple[Promotion, ...]:
    """The entries, the newest first.

    Args:
        client: Of the registry.
        experiment_id: Of the history.
        alias: Of one alias only.
        limit: How many at most.
    """
    wanted = f"tags.`{_PREFIX}alias` = '{alias}'" if alias else ""
    order = ["attributes.start_time DESC"]
    runs = client.search_runs([experiment_id], wanted, max_results=limit, order_by=order)
    return tuple(_read(run) for run in runs if f"{_PREFIX}alias" in run.data.tags)


def last_entry(client: MlflowClient, experiment_id: str, alias: str) -> Promotion | None:
    """The newest entry of an alias, whatever came of it; None when there is none."""
    return next(iter(read_history(client, experiment_id, alias, limit=1)), None)


def last_applied(client: MlflowClient, experiment_id: str, alias: str) -> Promotion | None:
    """The last entry after which a version was in use, or none was; None when the history knows nothing."""
    wanted = f"tags.`{_PREFIX}alias` = '{alias}' and attributes.status = 'FINISHED'"
    runs = client.search_runs([experiment_id], wanted, max_results=1, order_by=["attributes.start_time DESC"])
    return _read(runs[0]) if runs else None


def _read(run: Run) -> Promotion:
    tags: Mapping[str, str] = {
        key.removeprefix(_PREFIX): value for key, value in run.data.tags.items() if key.startswith(_PREFIX)
    }
    when = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
    state = {"FINISHED": "done", "RUNNING": "running"}.get(run.info.status, "failed")
    if state == "running" and datetime.now(UTC) - when > _INTERRUPTED:
        state = "interrupted"
    return Promotion(
        when=when,
        alias=tags["alias"],
        action=tags.get("action", "promoted"),
        before=_version(tags.get("from", "")),
        version=_version(tags.get("to", "")),
        cause=AuditInfo(tags.get("by") or None, tags.get("via", ""), tags.get("gate", ""), tags.get("reason", "")),
        state=state,
    )


def _number(version: int | None) -> str:
    return "–" if version is None else str(version)


def _version(text: str) -> int | None:
    return int(text) if text.isdecimal() else None
