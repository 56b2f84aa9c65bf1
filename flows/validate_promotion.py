"""Validate a version that was promoted in MLflow: apply the promotion, or revert it with the reason.

    python -m flows.validate_promotion

In MLflow's page, or with any client of it, a person sets the alias ``production`` on a version, or moves it into the
legacy stage Production. This is a request: the version is in production when this flow has validated it, and judged it
against the version in production now. Otherwise the alias is set back. Only a version in production before the history
began stays there without a decision.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Annotated, Any
from uuid import NAMESPACE_URL, uuid5

import typer
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.cli.console import console
from flows.cli.options import SetOption, cli_command
from flows.decision import apply_gate
from flows.evaluate import run_evaluation
from flows.evidence import read_comparison
from flows.service.events import PROMOTION_REVERTED, notify
from flows.service.readaptation import report_outdated_candidates
from flows.telemetry import attempt
from flows.workspace import open_workspace
from microseg.config.settings import Settings, load_settings
from microseg.errors import MicrosegError, RegistryError, TransientError, VersionNotFoundError
from microseg.locks import lock_file
from microseg.registry.decision import ACCEPTED, MET, NOT_EVALUATED, Decision, RuleResult
from microseg.registry.production import REASON_TAG, Judgement, Promotion
from microseg.registry.transitions import Entry
from microseg.registry.version import ModelVersion, lab_of

__all__ = ["apply_pending_changes", "as_state", "check_version", "command", "judge", "one_writer", "validate_promotion"]


@task
def check_version(version: ModelVersion, settings: Settings) -> tuple[RuleResult, ...]:
    """Check the files, the weights and a test segmentation of a version."""
    from microseg.api.validation import validate_version  # PyTorch takes seconds

    workspace = open_workspace(settings)
    results = validate_version(version, workspace.network, engine=workspace.engine)
    lines = [f"- {'✓' if result.outcome == MET else '✗'} **{result.rule}**: {result.message}" for result in results]
    attempt(create_markdown_artifact, "\n".join([f"# Version {version.version}", *lines]), key="validation")
    return results


def judge(request: Entry, against: int | None, settings: Settings) -> Judgement:
    """Validate a requested version, and judge it against the version in use.

    A person may promote a version against the gate, if its page showed this comparison before; otherwise the versions
    are compared now, and the gate decides.

    Args:
        request: The request.
        against: The version in use; None if there is none.
        settings: Settings of this run.
    """
    registry, audit = open_workspace(settings).registry, request.audit
    if request.version is None:
        return Judgement(True, replace(audit, reason="The alias was removed in MLflow."))
    try:
        version = registry.versions.find(request.version)
    except VersionNotFoundError as error:  # deleted meanwhile
        return Judgement(False, replace(audit, reason=str(error)))
    if failed := [result.message for result in check_version(version, settings) if result.outcome != MET]:
        return Judgement(False, replace(audit, reason=" ".join(failed)))
    if audit.gate != NOT_EVALUATED and request.against == against:  # judged when it was requested
        return Judgement(True, audit)
    state = registry.production.state()
    reason = version.tags.get(REASON_TAG) or audit.reason
    if version.version == state.of(request.alias).previous:
        return Judgement(True, replace(audit, reason=reason or "It was in production before."))
    if version.version == against:  # the alias of a lab
        return Judgement(True, replace(audit, reason=reason or "It is in production for all labs."))
    earlier = [entry.action for entry in state.entries if entry.number < request.number]
    # needed to upgrade from 0.1.0, and for a registry that was promoted by hand: they have an alias, and no history
    if not {"promoted", "rolled back"}.intersection(earlier) and Decision.from_tags(version) is None:
        return Judgement(True, replace(audit, reason="It was in production before the history began."))
    return _judge_by_gate(version, request, against, reason, settings)


def _judge_by_gate(
    version: ModelVersion, request: Entry, against: int | None, reason: str, settings: Settings
) -> Judgement:
    workspace, scope = open_workspace(settings), lab_of(request.alias)
    current = None if against is None else workspace.registry.versions.find(against)
    lab = scope or version.tags.get("target")
    try:
        comparison = read_comparison(version, current, settings, lab)
        # of a request that the gate judged against another version before, nobody has seen this comparison
        seen = comparison is not None and request.audit.gate == NOT_EVALUATED
        if comparison is None:
            comparison = run_evaluation(version, current, lab, settings)[0]
        decision = apply_gate(version, current, comparison, settings, scope)[0]
    except TransientError:  # the request stays, and is judged later
        raise
    except MicrosegError as error:
        text = (
            f"The gate could not be evaluated: {error} Run microseg evaluate {version.version} where this is possible."
        )
        return Judgement(False, replace(request.audit, reason=text))
    if decision.verdict == ACCEPTED or seen:
        reason = reason or " ".join(decision.reasons)
        return Judgement(True, replace(request.audit, gate=replace(decision, override=reason).status, reason=reason))
    text = (
        f"{decision} {' '.join(decision.reasons)} Its page in MLflow, and decision.html among the files of its run, "
        "show this now; to promote it all the same, set the alias again."
    )
    return Judgement(False, replace(request.audit, gate=decision.status, reason=text))


def apply_pending_changes(settings: Settings, alias: str | None = None) -> list[Promotion]:
    """Decide on all requests: apply or revert them.

    Args:
        settings: Settings of this run.
        alias: Only this alias.

    Returns:
        The new entries of the history.
    """
    production = open_workspace(settings).registry.production
    before = production.history()
    newest = before[0].number if before else 0
    with one_writer(settings):
        for request in production.observe():
            if alias in (None, request.alias):
                production.decide(request, partial(judge, request, settings=settings))
    new = [entry for entry in production.history() if entry.number > newest and entry.state != "running"]
    for entry in new:
        if entry.action in ("reverted", "ignored"):
            payload = {"alias": entry.alias, "version": entry.version, "message": str(entry)}
            identity = str(uuid5(NAMESPACE_URL, f"{settings.environment.tracking_uri}#{entry.number}"))
            notify(PROMOTION_REVERTED, f"microseg.alias.{entry.alias}", payload, identity=identity)
    return [entry for entry in reversed(new) if alias in (None, entry.alias) or entry.action == "ignored"]


@contextmanager
def one_writer(settings: Settings) -> Iterator[None]:
    """Let one process of this home at a time decide, so that no version is validated twice.

    The history decides who was first, also between machines: this lock only saves work.
    """
    with lock_file(settings.home.records / "promotion.lock"):
        yield


def as_state(entries: list[Promotion], message: str) -> State[Any]:
    """Completed, or Failed if a change was reverted, with a message."""
    return (
        Failed(message=message)
        if any(it.action in ("reverted", "ignored") for it in entries)
        else Completed(message=message)
    )


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
    settings = load_settings(changes)
    entries = apply_pending_changes(settings, alias)
    report_outdated_candidates(settings)
    if not entries:
        return Completed(message=f"Nothing to do: no pending change of {alias or 'production'}.")
    lines = [f"- {'✗' if it.action in ('reverted', 'ignored') else '✓'} {it}" for it in entries]
    attempt(create_markdown_artifact, "\n".join(["# Promotions", *lines]), key="validate-promotion")
    return as_state(entries, " ".join(map(str, entries)))


@cli_command()
def command(
    alias: Annotated[str | None, typer.Argument(help="Such as production or production-lab_b; all by default.")] = None,
    changes: SetOption = None,
) -> None:
    """Validate promotions made in MLflow: apply them, or revert them (exit code 1).

    `microseg serve` does this automatically.

    Example: microseg service validate-promotion
    """
    state = validate_promotion(alias, tuple(changes or ()), return_state=True)
    if not state.is_completed():
        raise RegistryError(state.message or "The validation failed.")
    console.print(state.message, markup=False)


if __name__ == "__main__":
    typer.run(command)
