"""Compare a model version with the production model.

python -m flows.evaluate --lab lab_b
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from prefect import flow, task
from prefect.artifacts import create_image_artifact, create_table_artifact

from flows.cli.console import console, progress_bar, show_table
from flows.cli.options import CandidateArgument, RecordOption, SetOption, cli_command, finish
from flows.decision import apply_gate
from flows.evidence import PICTURES_FILE, evaluation_folder, evidence_key, read_comparison
from flows.telemetry import attempt
from flows.workspace import open_workspace
from microseg.config.settings import Settings, load_settings
from microseg.files import write_text_file
from microseg.registry.decision import Decision
from microseg.registry.evidence import EvidenceKey
from microseg.registry.evidence_store import EVIDENCE_FOLDER
from microseg.registry.version import CANDIDATE, PRODUCTION, ModelVersion

if TYPE_CHECKING:  # PyTorch takes seconds
    from microseg.evaluation.comparison import Comparison

__all__ = ["EvaluateResult", "command", "evaluate", "run_evaluation"]

_PANELS, _PICTURES = 4, 32  # on the version's page in MLflow, on the page of the decision
_COLUMNS = ("measurement", "candidate", "production")


@dataclass(frozen=True)
class EvaluateResult:
    """A comparison of two versions.

    Attributes:
        decision: Decision of the gate, with the numbers of both versions.
        lab: The target lab; None if only source labs were evaluated.
        comparison: JSON file of all measurements.
        panels: Images of both segmentations side by side.
        page: HTML page of the decision, with the images and the measurements.
    """

    decision: Decision
    lab: str | None
    comparison: str
    panels: list[str]
    page: str


@task
def compare_versions(
    candidate: ModelVersion, production: ModelVersion | None, key: EvidenceKey, settings: Settings
) -> "Comparison":
    """Evaluate both versions on the same images."""
    from microseg.evaluation.comparison import compare

    workspace, lab = open_workspace(settings), key.lab
    source, _ = workspace.labs(candidate.datasets, missing_ok=candidate.source_free)
    source = [one for one in source if one.metadata.lab != lab] or source  # the target lab may have some masks
    target = workspace.lab(lab, key.datasets[lab])[0] if lab else None
    images = sum(len(one.select(split="test", labelled=True)) for one in source) + (len(target.rows) if target else 0)
    with progress_bar("Evaluating", images * (1 if production is None else 2)) as advance:
        return compare(
            workspace.network(candidate),
            workspace.network(production) if production else None,
            source=source,
            target=target,
            reference=(
                workspace.registry.versions.reference_distribution(candidate),
                workspace.registry.versions.reference_distribution(production) if production else None,
            ),
            engine=workspace.engine,
            min_target_slides=settings.params.gate.min_target_slides,
            on_image=advance,
        )


@task
def draw_comparison(
    candidate: ModelVersion, production: ModelVersion | None, comparison: "Comparison", folder: Path, settings: Settings
) -> list[Path]:
    """Draw images of the target lab with the segmentations of both versions, the most uncertain first.

    Returns:
        The panels for MLflow and Prefect; ``pictures.json``, for the page of the decision, is beside them.
    """
    from microseg.evaluation.label_free import lab_targets
    from microseg.report.panels import comparison_panels
    from microseg.report.pictures import draw_pictures, pictures_to_json, select_targets

    workspace, lab = open_workspace(settings), comparison.target or ""
    new = workspace.engine(workspace.network(candidate))
    old = workspace.engine(workspace.network(production)) if production else None
    target = workspace.lab(lab, candidate.datasets.get(lab))[0]
    evaluated = [it for it in lab_targets(target) if it.name in comparison.uncertainty]
    targets = select_targets(evaluated or lab_targets(target, _PICTURES), comparison.uncertainty, _PICTURES)
    write_text_file(folder / PICTURES_FILE, pictures_to_json(draw_pictures(new, old, targets)))
    engines = {f"candidate (version {candidate.version})": new}
    if production is not None and old is not None:
        engines = {f"production (version {production.version})": old, **engines}
    return comparison_panels(engines, targets[:_PANELS], target.metadata.classes, folder)


@task
def log_comparison(
    candidate: ModelVersion, key: EvidenceKey, comparison: "Comparison", panels: list[Path], settings: Settings
) -> None:
    """Store the comparison with the version in MLflow, and show it with the flow run in Prefect."""
    from microseg.report.panels import data_uri

    registry = open_workspace(settings).registry
    registry.evidence.write(candidate, key, comparison.to_json())
    registry.attachments.add(candidate, panels, EVIDENCE_FOLDER)
    pictures = evaluation_folder(key, settings) / PICTURES_FILE
    if panels:
        registry.attachments.add(candidate, [pictures], f"{EVIDENCE_FOLDER}/{key.digest}")
    for lab, metrics in comparison.metrics().items():
        digest = key.datasets.get(lab)
        registry.versions.log_metrics(candidate, metrics, dataset=(lab, digest) if digest else None)
    rows = [dict(zip(_COLUMNS, row, strict=True)) for row in comparison.rows()]
    attempt(create_table_artifact, rows, key="comparison", description=f"Version {candidate.version} and production")
    for number, panel in enumerate(panels, 1):
        attempt(create_image_artifact, data_uri(panel), key=f"panel-{number}", description=panel.stem)


@flow(name="evaluate", flow_run_name="evaluate {candidate}")
def evaluate(
    candidate: str = CANDIDATE, against: str = PRODUCTION, lab: str | None = None, changes: tuple[str, ...] = ()
) -> EvaluateResult:
    """Compare two versions on the held-out images of the source labs and on the target lab.

    Args:
        candidate: Version or alias to evaluate.
        against: Version or alias to compare with.
        lab: Target lab; the one that the candidate was adapted to by default.
        changes: Parameters that override those of params.yaml, ``section.name=value``.
    """
    settings = load_settings(changes)
    workspace = open_workspace(settings)
    version = workspace.registry.versions.find(candidate)
    other = workspace.production() if against == PRODUCTION else workspace.registry.versions.find(against)
    if other is not None and other.version == version.version:
        other = None
    lab = lab or version.tags.get("target")
    comparison, key, panels = run_evaluation(version, other, lab, settings)
    decision, page = apply_gate(version, other, comparison, settings)
    file = evaluation_folder(key, settings) / "comparison.json"
    return EvaluateResult(decision, lab, str(file), [str(panel) for panel in panels], str(page))


def run_evaluation(
    version: ModelVersion, other: ModelVersion | None, lab: str | None, settings: Settings
) -> "tuple[Comparison, EvidenceKey, list[Path]]":
    """Compare two versions, and store the comparison with the candidate in MLflow.

    Args:
        version: The candidate.
        other: The version to compare it with; None if there is none.
        lab: The target lab; None if there is none.
        settings: Settings of this run.

    Returns:
        The comparison, what it was measured on, and the images of both segmentations side by side.
    """
    key = evidence_key(open_workspace(settings), version, other, lab)
    comparison = compare_versions(version, other, key, settings)
    earlier = read_comparison(version, other, settings, lab)
    if earlier is not None and comparison.candidate.source_dice.keys() < earlier.candidate.source_dice.keys():
        comparison = earlier  # of a machine that has more source labs
    file = evaluation_folder(key, settings) / "comparison.json"
    write_text_file(file, comparison.to_json())
    panels = draw_comparison(version, other, comparison, file.parent, settings) if lab else []
    log_comparison(version, key, comparison, panels, settings)
    return comparison, key, panels


@cli_command()
def command(
    candidate: CandidateArgument = CANDIDATE,
    against: Annotated[str, typer.Option(help="Version or alias to compare with.")] = PRODUCTION,
    lab: Annotated[
        str | None, typer.Option(help="Target lab; by default the one that the candidate was adapted to.")
    ] = None,
    record: RecordOption = None,
    changes: SetOption = None,
) -> None:
    """Compare a candidate with the production model: Dice and object metrics on held-out labelled images, label-free
    criteria on the target lab.

    Example: microseg evaluate candidate --lab lab_b
    """
    from microseg.evaluation.comparison import Comparison

    result = evaluate(candidate, against, lab, tuple(changes or ()))
    comparison = Comparison.from_json(Path(result.comparison).read_bytes())
    show_table(f"Version {result.decision.version}", _COLUMNS, comparison.rows())
    console.print(f"Decision page, with the pictures: {result.page}", soft_wrap=True, markup=False)
    console.print(f"{result.decision} {result.decision.next_step()}", markup=False)
    finish(result, record)


if __name__ == "__main__":
    typer.run(command)
