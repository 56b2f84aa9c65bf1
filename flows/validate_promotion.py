"""Validate a version that was promoted in MLflow: apply the promotion, or revert it with the reason.

    python -m flows.validate_promotion

In MLflow's page, or with any client of it, a person sets the alias ``production`` on a version, or moves it into the
legacy stage Production. This is a request: the version is in production when this flow has validated it. If it is not
valid, the alias is set back. Only a version in production before the history began stays there without a decision.
"""

from dataclasses import replace
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
from microseg.api.validation import GATE_CHECK, validate_version
from microseg.config.settings import Settings, load_settings
from microseg.errors import RegistryError, VersionNotFoundError
from microseg.registry.decision import MET, NOT_EVALUATED, Decision, RuleResult
from microseg.registry.production import BY_TAG, REASON_TAG, AuditInfo, PendingAliasChange, Promotion
from microseg.registry.version import ModelVersion

__all__ = ["apply_pending_changes", "as_state", "check_version", "command", "validate_promotion"]


@task
def check_version(version: ModelVersion, settings: Settings) -> tuple[RuleResult, ...]:
    """Check the files, the weights, a test segmentation and the gate's decision of a version."""
    workspace = open_workspace(settings)
    results = validate_version(version, workspace.network, engine=workspace.engine)
    lines = [f"- {'✓' if result.outcome == MET else '✗'} **{result.rule}**: {result.message}" for result in results]
    create_markdown_artifact("\n".join([f"# Version {version.version}", *lines]), key="validation")
    return results


@task
def apply_or_revert(change: PendingAliasChange, settings: Settings) -> Promotion:
    """Apply a pending alias change, or revert it.

    Returns:
        The entry of the history.
    """
    registry = open_workspace(settings).registry
    production = registry.production
    if change.requested_version is None:
        production.record_removal(change, audit=AuditInfo(via=change.via, reason="The alias was removed in MLflow."))
        return production.history(change.alias)[0]
    try:
        version = registry.versions.find(change.requested_version)
    except VersionNotFoundError as error:  # deleted meanwhile
        production.revert(change, str(error), audit=AuditInfo(via=change.via, reason=str(error)))
        return production.history(change.alias)[0]
    decision, by = Decision.from_tags(version), version.tags.get(BY_TAG)
    failed = [result for result in check_version(version, settings) if result.outcome != MET]
    if [result.rule for result in failed] == [GATE_CHECK] and not production.history(change.alias):
        audit = AuditInfo(by, change.via, reason="It was in production before the history began.")
        production.promote(version, alias=change.alias, audit=audit)
    elif failed:
        reason = " ".join(result.message for result in failed)
        gate = decision.status if decision else NOT_EVALUATED
        production.revert(change, reason, audit=AuditInfo(by, change.via, gate, reason))
    else:
        assert decision is not None  # otherwise a check had failed
        reason = version.tags.get(REASON_TAG) or " ".join(decision.reasons)
        gate = replace(decision, override=reason).status  # a person has promoted it, whatever the verdict
        production.promote(version, alias=change.alias, audit=AuditInfo(by, change.via, gate, reason))
    return production.history(change.alias)[0]


def apply_pending_changes(settings: Settings, alias: str | None = None) -> list[Promotion]:
    """Apply or revert all pending alias changes, one process of this home at a time.

    Args:
        settings: Settings of this run.
        alias: Only this alias.

    Returns:
        The new entries of the history.
    """
    lock = settings.home.records / "promotion.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        pending = open_workspace(settings).registry.production.pending_changes()
        return [apply_or_revert(change, settings) for change in pending if alias in (None, change.alias)]


def as_state(entries: list[Promotion], message: str) -> State[Any]:
    """Completed, or Failed if a change was reverted, with a message."""
    return Failed(message=message) if any(it.action == "reverted" for it in entries) else Completed(message=message)


@flow(name="validate-promotion", flow_run_name="validate {alias}")
def validate_promotion(alias: str | None = None, changes: tuple[str, ...] = ()) -> State[Any]:
    """Validate the versions that somebody promoted in MLflow; apply or revert these promotions.

    It compares the registry with the history, so running it twice, or late, does no harm.

    Args:
        alias: ``production`` or ``production-<lab>``; all by default.
        changes: Parameters that override those of params.yaml, ``section.name=value``.

    Returns:
        Completed, or Failed if a promotion was reverted; the message describes each change.
    """
    entries = apply_pending_changes(load_settings(changes), alias)
    if not entries:
        return Completed(message=f"Nothing to do: no pending change of {alias or 'production'}.")
    lines = [f"- {'✗' if it.action == 'reverted' else '✓'} {it}" for it in entries]
    create_markdown_artifact("\n".join(["# Promotions", *lines]), key="validate-promotion")
    return as_state(entries, " ".join(map(str, entries)))


@cli_command()
def command(
    alias: Annotated[str | None, typer.Argument(help="Such as production or production-lab_b; all by default.")] = None,
    changes: SetOption = None,
) -> None:
    """Validate promotions made in MLflow: apply them, or revert them (exit code 1).

    `microseg serve` does this automatically. Example: microseg service validate-promotion
    """
    state = validate_promotion(alias, tuple(changes or ()), return_state=True)
    if not state.is_completed():
        raise RegistryError(state.message or "The validation failed.")
    console.print(state.message, markup=False)


if __name__ == "__main__":
    typer.run(command)
