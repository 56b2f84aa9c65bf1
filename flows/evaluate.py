"""A model version → metrics, figures, label-free evidence, beside the production model.

python -m flows.evaluate --lab lab_b
"""

import json
from pathlib import Path
from typing import Annotated

import typer
from prefect import flow, task
from prefect.artifacts import create_image_artifact, create_table_artifact

from flows.cli.console import console, progress_bar, show_table
from flows.cli.options import RecordOption, SetOption, cli_command, finish
from flows.records import EvaluateRecord
from flows.workspace import open_workspace
from microseg.config.settings import Settings, load_settings
from microseg.errors import VersionNotFoundError
from microseg.evaluation.comparison import Comparison, compare
from microseg.registry.gate import decide
from microseg.registry.registry import Registry
from microseg.registry.version import CANDIDATE, PRODUCTION, ModelVersion
from microseg.report.panels import comparison_panels, data_uri

__all__ = ["command", "comparison_rows", "evaluate", "read_comparison"]

_PANELS = 4


@task
def compare_versions(
    candidate: ModelVersion, production: ModelVersion | None, lab: str | None, settings: Settings
) -> Comparison:
    """Measure both versions on the same images."""
    source, _ = open_workspace(settings).labs(candidate.datasets)
    source = [one for one in source if one.metadata.lab != lab] or source  # the new lab may have sent a few masks
    target = open_workspace(settings).lab(lab, candidate.datasets.get(lab))[0] if lab else None
    registry, sides = open_workspace(settings).registry, 1 if production is None else 2
    images = sum(len(one.select(split="test", labelled=True)) for one in source) + (len(target.rows) if target else 0)
    with progress_bar("Evaluating", sides * images) as advance:
        return compare(
            open_workspace(settings).network(candidate),
            open_workspace(settings).network(production) if production else None,
            source=source,
            target=target,
            reference=(
                registry.reference_distribution(candidate),
                registry.reference_distribution(production) if production else None,
            ),
            engine=lambda network: open_workspace(settings).engine(network),
            on_image=advance,
        )


@task
def draw_panels(
    candidate: ModelVersion, production: ModelVersion | None, lab: str, folder: Path, settings: Settings
) -> list[Path]:
    """Pictures of both versions' segmentations of the new lab, side by side."""
    target = open_workspace(settings).lab(lab, candidate.datasets.get(lab))[0]
    sides = {"production": production, "candidate": candidate}
    engines = {
        f"{name} (version {version.version})": open_workspace(settings).engine(
            open_workspace(settings).network(version)
        )
        for name, version in sides.items()
        if version is not None
    }
    return comparison_panels(engines, target, folder, limit=_PANELS)


@task
def attach(registry: Registry, candidate: ModelVersion, comparison: Comparison, file: Path, panels: list[Path]) -> None:
    """Put the figures where people look: the version's page in MLflow and the flow run in Prefect."""
    registry.attach(candidate, [file, *panels], "evaluation")
    for lab, scores in comparison.scores.items():
        values = {f"{name}/{lab}": new for name, (new, _) in scores.items() if new is not None}
        registry.log_metrics_for(candidate, values, dataset=(lab, candidate.datasets[lab]))
    if comparison.target:
        label_free = {f"{name}/{comparison.target}": value for name, value in comparison.candidate.label_free.items()}
        digest = candidate.datasets.get(comparison.target)
        registry.log_metrics_for(candidate, label_free, dataset=(comparison.target, digest) if digest else None)
    rows = [dict(zip(("figure", "candidate", "production"), row, strict=True)) for row in comparison_rows(comparison)]
    create_table_artifact(rows, key="comparison", description=f"Version {candidate.version} beside production")
    for number, panel in enumerate(panels, 1):
        create_image_artifact(data_uri(panel), key=f"panel-{number}", description=panel.stem)


@flow(name="evaluate", flow_run_name="evaluate {candidate}")
def evaluate(
    candidate: str = CANDIDATE, against: str = PRODUCTION, lab: str | None = None, changes: tuple[str, ...] = ()
) -> EvaluateRecord:
    """Judge a version beside another, on the held-out images of labelled labs and on the new lab.

    Args:
        candidate: version or alias to judge.
        against: version or alias to compare with.
        lab: the new lab; the one that the candidate was adapted to by default.
        changes: parameters that replace those of params.yaml, ``section.name=value``.
    """
    settings = load_settings(changes)
    registry = open_workspace(settings).registry
    version = registry.resolve(candidate)
    other = _other(registry, against, version)
    lab = lab or version.tags.get("target")
    comparison = compare_versions(version, other, lab, settings)
    file = _comparison_file(version, other, settings)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(comparison.to_dict(), indent=2) + "\n")
    panels = draw_panels(version, other, lab, file.parent, settings) if lab else []
    attach(registry, version, comparison, file, panels)
    open_workspace(settings).update_model_card(
        version, comparison, decide(comparison.candidate, comparison.production, settings.params.gate), other
    )
    return EvaluateRecord(
        version.version,
        other.version if other else None,
        lab,
        str(file),
        [str(panel) for panel in panels],
        comparison.to_dict(),
    )


def read_comparison(candidate: ModelVersion, against: ModelVersion | None, settings: Settings) -> Comparison | None:
    """What an earlier evaluation of these two versions found; None when there was none here."""
    file = _comparison_file(candidate, against, settings)
    return Comparison.from_dict(json.loads(file.read_text())) if file.is_file() else None


def _comparison_file(candidate: ModelVersion, against: ModelVersion | None, settings: Settings) -> Path:
    other = against.version if against else "none"
    folder = settings.home.runs / "evaluate" / f"version-{candidate.version}-against-{other}"
    return folder / "comparison.json"


def comparison_rows(comparison: Comparison) -> list[tuple[str, float | None, float | None]]:
    """Figure, candidate, production: what a table of a comparison shows."""
    rows: list[tuple[str, float | None, float | None]] = []
    for lab, scores in comparison.scores.items():
        rows += [(f"{name.replace('_', ' ')}, {lab}", new, old) for name, (new, old) in scores.items()]
    if (gain := comparison.candidate.target_gain) is not None:
        ends = {"": gain.value, ", at least": gain.low, ", at most": gain.high}
        rows += [(f"dice gained{end}, {comparison.target}", value, None) for end, value in ends.items()]
    old_evidence = comparison.production.label_free if comparison.production else {}
    for name, value in comparison.candidate.label_free.items():
        rows.append((f"{name.replace('_', ' ')}, {comparison.target}", value, old_evidence.get(name)))
    return rows


def _other(registry: Registry, against: str, version: ModelVersion) -> ModelVersion | None:
    try:
        other = registry.resolve(against)
    except VersionNotFoundError:
        if against != PRODUCTION:
            raise
        return None
    return None if other.version == version.version else other


@cli_command
def command(
    candidate: Annotated[str, typer.Argument(help="Version or alias to judge.")] = CANDIDATE,
    against: Annotated[str, typer.Option(help="Version or alias to compare with.")] = PRODUCTION,
    lab: Annotated[str | None, typer.Option(help="The new lab; the one adapted to by default.")] = None,
    record: RecordOption = None,
    changes: SetOption = None,
) -> None:
    """Judge a candidate beside the production model: Dice on held-out labelled images, label-free evidence on the new
    lab.

    Example: microseg evaluate candidate --lab lab_b
    """
    result = evaluate(candidate, against, lab, tuple(changes or ()))
    comparison = Comparison.from_dict(json.loads(Path(result.comparison).read_text()))
    show_table(f"Version {result.candidate}", ("figure", "candidate", "production"), comparison_rows(comparison))
    if result.figures:
        console.print(f"Side by side: {Path(result.figures[0]).parent}")
    finish(result, record)


if __name__ == "__main__":
    typer.run(command)
