"""A candidate → production, or the reasons why not; and back again.

python -m flows.promote
python -m flows.promote --rollback
"""

from typing import Annotated

import typer
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact

from flows.command import RecordOption, SetOption, finish, microseg_command
from flows.console import console
from flows.evaluate import evaluate, read_comparison
from flows.models import describe, open_registry
from flows.records import PromoteRecord
from flows.settings import Settings, load_settings
from microseg.errors import RegistryError, VersionNotFoundError
from microseg.evaluation import Comparison
from microseg.registry import CANDIDATE, PRODUCTION, Decision, ModelVersion, Registry, decide

__all__ = ["command", "promote", "rollback"]


@task
def apply_gate(version: ModelVersion, comparison: Comparison, settings: Settings) -> Decision:
    """Ask the gate, and move the alias if it accepts."""
    registry = open_registry(settings)
    decision = decide(comparison.candidate, comparison.production, settings.params.gate)
    describe(registry, version, comparison, decision, _production(registry), settings)
    if decision.accept:
        registry.promote(version)
    return decision


@flow(name="promote", flow_run_name="promote {candidate}")
def promote(candidate: str = CANDIDATE, changes: tuple[str, ...] = ()) -> PromoteRecord:
    """Put a version into production if the gate accepts it.

    Args:
        candidate: version or alias; it is evaluated first where it was not yet.
        changes: parameters that replace those of params.yaml, ``section.name=value``.
    """
    settings = load_settings(changes)
    registry = open_registry(settings)
    version = registry.resolve(candidate)
    current = _production(registry)
    if current is not None and current.version == version.version:
        return PromoteRecord(
            version.version, True, version.version, [f"Version {version.version} is in production already."]
        )
    comparison = read_comparison(version, current, settings)
    if comparison is None:
        evaluate(candidate, changes=changes)
        comparison = read_comparison(version, current, settings)
        assert comparison is not None
    decision = apply_gate(version, comparison, settings)
    verdict = "accepted" if decision.accept else "refused"
    reasons = [reason.sentence for reason in decision.reasons]
    lines = [f"- {'✓' if reason.passed else '✗'} {reason.sentence}" for reason in decision.reasons]
    create_markdown_artifact("\n".join([f"# Version {version.version}: {verdict}", *lines]), key="gate")
    now = _production(registry)
    return PromoteRecord(version.version, decision.accept, now.version if now else None, reasons)


@flow(name="rollback")
def rollback(changes: tuple[str, ...] = ()) -> PromoteRecord:
    """Put the previous version back into production.

    Args:
        changes: parameters that replace those of params.yaml, ``section.name=value``.
    """
    registry = open_registry(load_settings(changes))
    left = _production(registry)
    version = registry.rollback()
    reason = f"Rolled back from version {left.version if left else '–'} to version {version.version}."
    return PromoteRecord(version.version, True, version.version, [reason])


def _production(registry: Registry) -> ModelVersion | None:
    try:
        return registry.resolve(PRODUCTION)
    except VersionNotFoundError:
        return None


@microseg_command
def command(
    candidate: Annotated[str, typer.Argument(help="Version or alias to promote.")] = CANDIDATE,
    back: Annotated[bool, typer.Option("--rollback", help="Put the previous version back instead.")] = False,
    record: RecordOption = None,
    changes: SetOption = None,
) -> None:
    """Put a candidate into production if the gate accepts it; say why not otherwise (exit code 1).

    Example: microseg promote candidate --set gate.max_source_loss=0.03
    """
    result = rollback(tuple(changes or ())) if back else promote(candidate, tuple(changes or ()))
    for reason in result.reasons:
        console.print(f"  {reason}")
    finish(result, record)
    if not result.accepted:
        raise RegistryError(
            f"The gate refused version {result.version}; version {result.production} stays in production."
        )
    console.print(f"Version {result.production} is in production.")


if __name__ == "__main__":
    typer.run(command)
