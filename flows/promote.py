"""A candidate → production, or the reasons why not.

python -m flows.promote
python -m flows.promote 7 --lab lab_b
"""

from typing import Annotated

import typer
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact

from flows.audit import cause
from flows.cli.console import console
from flows.cli.options import LabOption, RecordOption, SetOption, cli_command, finish
from flows.evaluate import evaluate, read_comparison
from flows.records import PromoteRecord
from flows.validate_promotion import apply_pending_changes, check_version
from flows.workspace import open_workspace
from microseg.config.settings import Settings, load_settings
from microseg.errors import RegistryError
from microseg.evaluation.comparison import Comparison
from microseg.registry.gate import Decision, decide
from microseg.registry.verdict import OVERRIDDEN
from microseg.registry.version import CANDIDATE, ModelVersion, production_of

__all__ = ["command", "promote"]


@task
def apply_gate(version: ModelVersion, comparison: Comparison, lab: str | None, settings: Settings) -> Decision:
    """Ask the gate, and write its verdict on the version's card."""
    decision = decide(comparison.candidate, comparison.production, open_workspace(settings).gate_settings(lab))
    open_workspace(settings).update_model_card(version, comparison, decision, open_workspace(settings).production(lab))
    return decision


@task
def move_alias(
    version: ModelVersion, lab: str | None, gate: str, reason: str, by: str | None, settings: Settings
) -> None:
    """Look whether the version can be used at all, then move the alias."""
    if faults := [check.sentence for check in check_version(version, settings) if not check.passed]:
        raise RegistryError(f"Version {version.version} is not fit for production: {' '.join(faults)}")
    told = cause(by=by, gate=gate, reason=reason)
    open_workspace(settings).registry.promote(version, alias=production_of(lab), cause=told)


@flow(name="promote", flow_run_name="promote {candidate}")
def promote(
    candidate: str = CANDIDATE,
    lab: str | None = None,
    override: str | None = None,
    by: str | None = None,
    changes: tuple[str, ...] = (),
) -> PromoteRecord:
    """Put a version into production if the gate accepts it.

    Args:
        candidate: version or alias; it is evaluated first where it was not yet.
        lab: promote it for this lab's images alone; for all by default.
        override: why it goes into production although the gate refuses it; kept in the history.
        by: who asks, for the history; the user of this process by default.
        changes: parameters that replace those of params.yaml, ``section.name=value``.
    """
    settings = load_settings(changes)
    registry = open_workspace(settings).registry
    apply_pending_changes(settings)  # so that what is in production is known to be fit
    version = registry.resolve(candidate)
    current = open_workspace(settings).production(lab)
    if production_of(lab) in version.aliases:
        return PromoteRecord(
            version.version, True, version.version, [f"Version {version.version} is in production already."]
        )
    comparison = read_comparison(version, current, settings)
    if comparison is None:
        if current is None:
            evaluate(candidate, changes=changes)
        else:
            evaluate(candidate, against=str(current.version), changes=changes)
        comparison = read_comparison(version, current, settings)
        assert comparison is not None
    decision = apply_gate(version, comparison, lab, settings)
    accepted = decision.accept or override is not None
    verdict = "accepted" if decision.accept else OVERRIDDEN if accepted else "refused"
    reasons = [reason.sentence for reason in decision.reasons]
    if accepted:
        move_alias(version, lab, verdict, override or "", by, settings)
    lines = [f"- {'✓' if reason.passed else '✗'} {reason.sentence}" for reason in decision.reasons]
    lines += [f"- Overridden: {override}"] if verdict == OVERRIDDEN else []
    create_markdown_artifact("\n".join([f"# Version {version.version}: {verdict}", *lines]), key="gate")
    now = open_workspace(settings).production(lab)
    return PromoteRecord(version.version, accepted, now.version if now else None, reasons)


@cli_command
def command(
    candidate: Annotated[str, typer.Argument(help="Version or alias to promote.")] = CANDIDATE,
    lab: LabOption = None,
    override: Annotated[
        str | None, typer.Option(metavar="REASON", help="Promote it although the gate refuses, for this reason.")
    ] = None,
    record: RecordOption = None,
    changes: SetOption = None,
) -> None:
    """Put a candidate into production if the gate accepts it; say why not otherwise (exit code 1).

    Example: microseg promote candidate --set gate.max_source_loss=0.03
    """
    result = promote(candidate, lab, override, None, tuple(changes or ()))
    for reason in result.reasons:
        console.print(f"  {reason}")
    finish(result, record)
    if not result.accepted:
        raise RegistryError(
            f"The gate refused version {result.version}; version {result.production} stays in production."
        )
    console.print(f"Version {result.production} is in production{f' for {lab}' if lab else ''}.")


if __name__ == "__main__":
    typer.run(command)
