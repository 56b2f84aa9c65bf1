"""A version that somebody promoted elsewhere → looked at, then settled in production; or put back, with the reason.

    python -m flows.validate_promotion

In MLflow's page, or with any client of it, a person sets the alias ``production`` on a version, or moves it into the
legacy stage Production. That is a wish: the version is in production when this flow has found it fit. Where it is
not, the alias goes back to where it was. Only what was in production before there was a history stays there unjudged.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from filelock import FileLock
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.cli.console import console
from flows.cli.options import SetOption, cli_command
from flows.workspace import open_workspace
from microseg.api.validation import ValidationCheck, validate_version
from microseg.config.settings import Settings, load_settings
from microseg.errors import RegistryError, VersionNotFoundError
from microseg.registry.history import AuditInfo
from microseg.registry.production import BY_TAG, REASON_TAG, PendingAliasChange
from microseg.registry.verdict import stored_verdict
from microseg.registry.version import ModelVersion

__all__ = ["apply_pending_changes", "check_version", "command", "validate_promotion"]


@dataclass(frozen=True)
class _Settled:
    change: PendingAliasChange
    accepted: bool
    message: str


@task
def check_version(version: ModelVersion, settings: Settings) -> tuple[ValidationCheck, ...]:
    """Look whether the version can be used: its files, its weights, a smoke image, its gate report."""
    checks = validate_version(
        open_workspace(settings).registry,
        version,
        settings.home.models,
        engine=lambda network: open_workspace(settings).engine(network),
    )
    lines = [f"- {'✓' if check.passed else '✗'} **{check.name}**: {check.sentence}" for check in checks]
    create_markdown_artifact("\n".join([f"# Version {version.version}", *lines]), key="fitness")
    return checks


@task
def settle(change: PendingAliasChange, settings: Settings) -> _Settled:
    """Accept what somebody moved, or put it back; either is written to the history."""
    registry = open_workspace(settings).registry
    place = change.alias if change.via == "mlflow" else "the stage Production"
    if change.version is None:
        registry.record_removal(
            change, cause=AuditInfo(via=change.via, reason=f"The alias {change.alias} was removed.")
        )
        return _Settled(change, True, f"{change.alias} was removed; it was version {change.settled}.")
    try:
        version = registry.resolve(change.version)
    except VersionNotFoundError as error:  # deleted meanwhile
        registry.revert(change, str(error), cause=AuditInfo(via=change.via, reason=str(error)))
        return _Settled(change, False, str(error))
    report = stored_verdict(version)
    by = version.tags.get(BY_TAG)
    faulty = [check for check in check_version(version, settings) if not check.passed]
    if [check.name for check in faulty] == ["gate report"] and not registry.history(change.alias):
        reason = "It was in production before there was a history."
        registry.promote(version, alias=change.alias, cause=AuditInfo(by, change.via, reason=reason))
        return _Settled(change, True, f"Version {version.version} stays in production. {reason}")
    faults = [check.sentence for check in faulty]
    if faults:
        reason = " ".join(faults)
        gate = report.verdict(promoted=False) if report else "not asked"
        back = registry.revert(change, reason, cause=AuditInfo(by, change.via, gate, reason))
        now = f"version {back.version} stays in production" if back else "nothing is in production"
        return _Settled(change, False, f"Version {version.version} was refused, {now}: {reason}")
    assert report is not None  # else there had been a fault
    reason = version.tags.get(REASON_TAG) or " ".join(report.refusals)
    registry.promote(
        version, alias=change.alias, cause=AuditInfo(by, change.via, report.verdict(promoted=True), reason)
    )
    overridden = "" if report.accepted else f" The gate had refused it: {' '.join(report.refusals)}"
    before = f"; before it was version {change.settled}" if change.settled else ""
    return _Settled(change, True, f"Version {version.version} is in production ({place}){before}.{overridden}")


def apply_pending_changes(settings: Settings, alias: str | None = None) -> list[_Settled]:
    """Settle whatever somebody moved, one after the other; nobody else on this home does meanwhile.

    Args:
        settings: of this run.
        alias: only this one.
    """
    lock: Path = settings.home.records / "promotion.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        pending_changes = open_workspace(settings).registry.pending_changes()
        return [settle(change, settings) for change in pending_changes if alias in (None, change.alias)]


@flow(name="validate-promotion", flow_run_name="validate {alias}")
def validate_promotion(alias: str | None = None, changes: tuple[str, ...] = ()) -> State[Any]:
    """Look at a version that somebody promoted, and settle it in production or put it back.

    It acts on what the registry says now, so running it twice, or late, does no harm.

    Args:
        alias: ``production`` or ``production-<lab>``; all by default.
        changes: parameters that replace those of params.yaml, ``section.name=value``.

    Returns:
        Completed, or Failed when a version was refused; the message says what happened.
    """
    settled = apply_pending_changes(load_settings(changes), alias)
    if not settled:
        return Completed(message=f"Nothing to do: {alias or 'production'} is what the history says.")
    lines = [f"- {'✓' if it.accepted else '✗'} {it.message}" for it in settled]
    create_markdown_artifact("\n".join(["# Roll-out", *lines]), key="roll-out")
    message = " ".join(it.message for it in settled)
    return Completed(message=message) if all(it.accepted for it in settled) else Failed(message=message)


@cli_command
def command(
    alias: Annotated[str | None, typer.Argument(help="Such as production or production-lab_b; all by default.")] = None,
    changes: SetOption = None,
) -> None:
    """Look at what somebody promoted in MLflow, and settle it in production or put it back (exit code 1).

    With `microseg serve` this happens by itself. Example: microseg service validate-promotion
    """
    state = validate_promotion(alias, tuple(changes or ()), return_state=True)
    if not state.is_completed():
        raise RegistryError(state.message or "The roll-out failed.")
    console.print(state.message)


if __name__ == "__main__":
    typer.run(command)
