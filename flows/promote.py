"""Promote a candidate to production if the gate accepts it.

python -m flows.promote
python -m flows.promote 7 --lab lab_b
"""

import getpass
from dataclasses import replace
from typing import Annotated

import typer
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import deployment

from flows.cli.console import console
from flows.cli.options import LabOption, RecordOption, SetOption, cli_command, finish
from flows.evaluate import apply_gate, evaluate, read_comparison
from flows.validate_promotion import apply_pending_changes, check_version
from flows.workspace import open_workspace
from microseg.config.settings import Settings, load_settings
from microseg.errors import RegistryError
from microseg.registry.decision import ACCEPTED, MET, NEEDS_REVIEW, NOT_EVALUATED, Decision, RuleResult
from microseg.registry.production import AuditInfo
from microseg.registry.version import CANDIDATE, ModelVersion, production_of

__all__ = ["audit_info", "command", "promote"]


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
def set_production_alias(
    version: ModelVersion, lab: str | None, decision: Decision, by: str | None, settings: Settings
) -> None:
    """Validate the version, then set the alias."""
    if failures := [result.message for result in check_version(version, settings) if result.outcome != MET]:
        raise RegistryError(f"Version {version.version} is not valid for production: {' '.join(failures)}")
    audit = audit_info(by=by, gate=decision.status, reason=decision.override or "")
    open_workspace(settings).registry.production.promote(version, alias=production_of(lab), audit=audit)


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
    version, current = workspace.registry.versions.find(candidate), workspace.production(lab)
    if production_of(lab) in version.aliases:
        unchanged = RuleResult(MET, "production", f"Version {version.version} is in production already.")
        return Decision(ACCEPTED, (unchanged,), version.version, version.version)
    comparison = read_comparison(version, current, settings)
    if comparison is None:
        against = {"against": str(current.version)} if current else {}
        evaluate(candidate, changes=changes, **against)
        comparison = read_comparison(version, current, settings)
        assert comparison is not None
    decision = replace(apply_gate(version, current, comparison, settings, lab)[0], override=override)
    if decision.promoted:
        set_production_alias(version, lab, decision, by, settings)
    create_markdown_artifact(
        "\n".join([f"# Version {version.version}: {decision.status}", *decision.markdown()]), key="gate"
    )
    return decision


@cli_command()
def command(
    candidate: Annotated[str, typer.Argument(help="Version or alias to promote.")] = CANDIDATE,
    lab: LabOption = None,
    override: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="Promote it although the gate refuses or cannot tell, for this reason."),
    ] = None,
    record: RecordOption = None,
    changes: SetOption = None,
) -> None:
    """Promote a candidate to production if the gate accepts it; otherwise show the reasons (exit code 1). If the gate
    cannot tell, look at the candidate, and promote it with --override.

    Example: microseg promote candidate --set gate.max_source_loss=0.03
    """
    decision = promote(candidate, lab, override, None, tuple(changes or ()))
    for line in decision.markdown():
        console.print(f"  {line.removeprefix('- ')}", markup=False)
    finish(decision, record)
    if not decision.promoted:
        current = decision.production_version
        now = f"version {current} stays in production" if current else "no version is in production"
        if decision.verdict == NEEDS_REVIEW:
            raise RegistryError(
                f"{decision} {now.capitalize()}. Compare both on the page of version {decision.version} in MLflow; if "
                f"it is better: microseg promote {decision.version} --override REASON"
            )
        raise RegistryError(f"The gate refused version {decision.version}; {now}.")
    console.print(
        f"Version {decision.version} is in production{f' for {lab}' if lab else ''}. Next: microseg segment FOLDER"
    )


if __name__ == "__main__":
    typer.run(command)
