"""A version that somebody promoted elsewhere → looked at, then settled in production; or put back, with the reason.

    python -m flows.rollout

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

from flows.command import SetOption, microseg_command
from flows.console import console
from flows.models import make_engine
from flows.settings import Settings, load_settings
from flows.stores import open_registry
from microseg.errors import RegistryError, VersionNotFoundError
from microseg.registry import BY_TAG, REASON_TAG, Cause, Drift, ModelVersion, gate_report
from microseg.sdk import Check, check_fitness

__all__ = ["check_version", "command", "roll_out", "settle_drifts"]


@dataclass(frozen=True)
class _Settled:
    drift: Drift
    accepted: bool
    message: str


@task
def check_version(version: ModelVersion, settings: Settings) -> tuple[Check, ...]:
    """Look whether the version can be used: its files, its weights, a smoke image, its gate report."""
    checks = check_fitness(
        open_registry(settings),
        version,
        settings.home.models,
        engine=lambda network: make_engine(network, settings),
    )
    lines = [f"- {'✓' if check.passed else '✗'} **{check.name}**: {check.sentence}" for check in checks]
    create_markdown_artifact("\n".join([f"# Version {version.version}", *lines]), key="fitness")
    return checks


@task
def settle(drift: Drift, settings: Settings) -> _Settled:
    """Accept what somebody moved, or put it back; either is written to the history."""
    registry = open_registry(settings)
    place = drift.alias if drift.via == "mlflow" else "the stage Production"
    if drift.version is None:
        registry.withdraw(drift, cause=Cause(via=drift.via, reason=f"The alias {drift.alias} was removed."))
        return _Settled(drift, True, f"{drift.alias} was removed; it was version {drift.settled}.")
    try:
        version = registry.resolve(drift.version)
    except VersionNotFoundError as error:  # deleted meanwhile
        registry.put_back(drift, str(error), cause=Cause(via=drift.via, reason=str(error)))
        return _Settled(drift, False, str(error))
    report = gate_report(version)
    by = version.tags.get(BY_TAG)
    faulty = [check for check in check_version(version, settings) if not check.passed]
    if [check.name for check in faulty] == ["gate report"] and not registry.history(drift.alias):
        reason = "It was in production before there was a history."
        registry.promote(version, alias=drift.alias, cause=Cause(by, drift.via, reason=reason))
        return _Settled(drift, True, f"Version {version.version} stays in production. {reason}")
    faults = [check.sentence for check in faulty]
    if faults:
        reason = " ".join(faults)
        gate = report.verdict(promoted=False) if report else "not asked"
        back = registry.put_back(drift, reason, cause=Cause(by, drift.via, gate, reason))
        now = f"version {back.version} stays in production" if back else "nothing is in production"
        return _Settled(drift, False, f"Version {version.version} was refused, {now}: {reason}")
    assert report is not None  # else there had been a fault
    reason = version.tags.get(REASON_TAG) or " ".join(report.refusals)
    registry.promote(version, alias=drift.alias, cause=Cause(by, drift.via, report.verdict(promoted=True), reason))
    overridden = "" if report.accepted else f" The gate had refused it: {' '.join(report.refusals)}"
    before = f"; before it was version {drift.settled}" if drift.settled else ""
    return _Settled(drift, True, f"Version {version.version} is in production ({place}){before}.{overridden}")


def settle_drifts(settings: Settings, alias: str | None = None) -> list[_Settled]:
    """Settle whatever somebody moved, one after the other; nobody else on this home does meanwhile.

    Args:
        settings: of this run.
        alias: only this one.
    """
    lock: Path = settings.home.records / "promotion.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        drifts = open_registry(settings).drifts()
        return [settle(drift, settings) for drift in drifts if alias in (None, drift.alias)]


@flow(name="roll-out", flow_run_name="roll out {alias}")
def roll_out(alias: str | None = None, changes: tuple[str, ...] = ()) -> State[Any]:
    """Look at a version that somebody promoted, and settle it in production or put it back.

    It acts on what the registry says now, so running it twice, or late, does no harm.

    Args:
        alias: ``production`` or ``production-<lab>``; all by default.
        changes: parameters that replace those of params.yaml, ``section.name=value``.

    Returns:
        Completed, or Failed when a version was refused; the message says what happened.
    """
    settled = settle_drifts(load_settings(changes), alias)
    if not settled:
        return Completed(message=f"Nothing to do: {alias or 'production'} is what the history says.")
    lines = [f"- {'✓' if it.accepted else '✗'} {it.message}" for it in settled]
    create_markdown_artifact("\n".join(["# Roll-out", *lines]), key="roll-out")
    message = " ".join(it.message for it in settled)
    return Completed(message=message) if all(it.accepted for it in settled) else Failed(message=message)


@microseg_command
def command(
    alias: Annotated[str | None, typer.Argument(help="Such as production or production-lab_b; all by default.")] = None,
    changes: SetOption = None,
) -> None:
    """Look at what somebody promoted in MLflow, and settle it in production or put it back (exit code 1).

    With `microseg serve` this happens by itself. Example: microseg rollout
    """
    state = roll_out(alias, tuple(changes or ()), return_state=True)
    if not state.is_completed():
        raise RegistryError(state.message or "The roll-out failed.")
    console.print(state.message)


if __name__ == "__main__":
    typer.run(command)
