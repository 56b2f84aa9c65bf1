"""Promote a candidate to production if the gate accepts it.

python -m flows.promote
python -m flows.promote 7 --lab lab_b
"""

import getpass
from dataclasses import replace
from functools import partial
from typing import Annotated

import typer
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import deployment

from flows.cli.console import console
from flows.cli.options import CandidateArgument, LabOption, RecordOption, SetOption, cli_command, finish
from flows.decision import apply_gate
from flows.evaluate import run_evaluation
from flows.evidence import read_comparison
from flows.service.readaptation import report_outdated_candidates
from flows.telemetry import attempt
from flows.validate_promotion import apply_pending_changes, check_version, judge, one_writer
from flows.workspace import open_workspace
from microseg.config.settings import Settings, load_settings
from microseg.errors import RegistryError
from microseg.registry.decision import ACCEPTED, MET, NOT_EVALUATED, Decision, RuleResult
from microseg.registry.production import AuditInfo, Outcome
from microseg.registry.version import CANDIDATE, ModelVersion, production_of

__all__ = ["audit_info", "command", "promote"]

_ATTEMPTS = 5  # another version was promoted while this one was evaluated


def audit_info(*, by: str | None = None, gate: str = NOT_EVALUATED, reason: str = "") -> AuditInfo:
    """Return who makes a change, and through which interface.

    Args:
        by: Name of the user; the user of this process if a command runs the flow and no name is given.
        gate: Status of the gate's decision.
        reason: Free text.
    """
    if deployment.id is not None:  # started in Prefect's page, by its API, or by an event
        return AuditInfo(by, "prefect", gate, reason)
    try:
        user = by or getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user without a name
        user = None
    return AuditInfo(user, "command", gate, reason)


@task
def request_promotion(
    version: ModelVersion, lab: str | None, decision: Decision, by: str | None, settings: Settings
) -> Outcome:
    """Validate the version, then request and decide its promotion.

    Returns:
        How the request ended: ``"reverted"`` if another version was promoted meanwhile, and the gate does not accept
        this one against that.
    """
    if failures := [result.message for result in check_version(version, settings) if result.outcome != MET]:
        raise RegistryError(f"Version {version.version} is not valid for production: {' '.join(failures)}")
    production = open_workspace(settings).registry.production
    audit = audit_info(by=by, gate=decision.status, reason=decision.override or "")
    with one_writer(settings):
        request = production.request(
            version.version, alias=production_of(lab), against=decision.production_version, audit=audit
        )
        return production.decide(request, partial(judge, request, settings=settings))


@flow(name="promote", flow_run_name="promote {candidate}")
def promote(
    candidate: str = CANDIDATE,
    lab: str | None = None,
    override: str | None = None,
    by: str | None = None,
    changes: tuple[str, ...] = (),
) -> Decision:
    """Promote a version to production if the gate accepts it.

    Args:
        candidate: Version or alias; it is evaluated first if it was not yet.
        lab: Promote it for the images of this lab only; for all by default.
        override: Reason to promote it although the gate refuses or cannot tell; stored in the history.
        by: User for the history; the user of this process by default.
        changes: Parameters that override those of params.yaml, ``section.name=value``.

    Returns:
        The gate's decision; the version is in production afterwards if ``promoted`` is true.
    """
    settings = load_settings(changes)
    workspace = open_workspace(settings)
    apply_pending_changes(settings)  # so that the version in production is a validated one
    version, alias = workspace.registry.versions.find(candidate), production_of(lab)
    target = lab or version.tags.get("target")
    for _ in range(_ATTEMPTS):
        state = workspace.registry.production.state()
        if state.of(alias).active == version.version:
            workspace.registry.production.promote(version, alias=alias)  # it is a candidate no more
            unchanged = RuleResult(MET, "production", f"Version {version.version} is in production already.")
            return Decision(ACCEPTED, (unchanged,), version.version, version.version)
        current = workspace.production(lab)
        comparison = read_comparison(version, current, settings, target)
        if comparison is None:
            comparison = run_evaluation(version, current, target, settings)[0]
        decision = replace(apply_gate(version, current, comparison, settings, lab)[0], override=override)
        outcome = request_promotion(version, lab, decision, by, settings) if decision.promoted else "active"
        if outcome == "superseded":
            raise RegistryError(
                f"Version {version.version} was not promoted: a later request superseded it (microseg history)."
            )
        if outcome == "active":
            break
        override = None  # it was about another version in production
    report_outdated_candidates(settings)
    attempt(
        create_markdown_artifact,
        "\n".join([f"# Version {version.version}: {decision.status}", *decision.markdown()]),
        key="gate",
    )
    return decision


@cli_command()
def command(
    candidate: CandidateArgument = CANDIDATE,
    lab: LabOption = None,
    override: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="Promote it although the gate refuses or cannot tell, for this reason."),
    ] = None,
    record: RecordOption = None,
    changes: SetOption = None,
) -> None:
    """Promote a candidate to production if the gate accepts it; otherwise show the reasons (exit code 1).

    Where the gate cannot tell, look at the candidate, and promote it with --override.

    Example: microseg promote candidate --set gate.max_source_loss=0.03
    """
    decision = promote(candidate, lab, override, None, tuple(changes or ()))
    for line in decision.markdown():
        console.print(f"  {line.removeprefix('- ')}", markup=False)
    finish(decision, record)
    if not decision.promoted:
        raise RegistryError(f"{decision} {decision.next_step(lab)}")
    console.print(
        f"Version {decision.version} is in production{f' for {lab}' if lab else ''}. Next: microseg segment FOLDER"
    )


if __name__ == "__main__":
    typer.run(command)
