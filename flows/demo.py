"""Runs every step on two labs: ingest, train, adapt, evaluate, promote, segment; and writes a report.

    microseg demo
    microseg demo --source labs/he --target labs/ihc

Without folders two synthetic labs are used: lab_a (H&E, labelled) and lab_b (DAB-H, unlabelled). All steps are the
flows that run in production. The report compares their results with the masks in the labs' test/ folders, which no flow
reads.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from prefect import flow, task

from flows.adapt import adapt
from flows.cli.console import console, progress_bar, show_table
from flows.cli.options import SetOption, cli_command
from flows.evaluate import evaluate
from flows.evidence import read_comparison
from flows.ingest import ingest
from flows.promote import promote
from flows.segment import segment
from flows.train import train
from flows.workspace import open_workspace
from microseg.config.settings import Settings, load_settings
from microseg.datasets.lab import LabMetadata, read_lab_metadata
from microseg.errors import LabError, RegistryError
from microseg.escaping import mask_secrets
from microseg.evaluation.references import Reference, held_out_references, lab_references, mean_scores, score
from microseg.outputs.batch_summary import BatchSummary
from microseg.registry.decision import ACCEPTED, REFUSED, Decision
from microseg.registry.production import AuditInfo
from microseg.registry.version import PRODUCTION, ModelVersion
from microseg.report.demo_page import Change, DemoReport, write_page, write_report
from microseg.report.panels import reference_panels
from microseg.synthetic.labs import LAB_A, LAB_B, generate_lab

__all__ = ["command", "demo"]

_DEMO_TAG = "demo"
_OVERLAYS = 4

T = TypeVar("T")


@dataclass
class _Timer:
    """Seconds of each step."""

    start: float = field(default_factory=time.monotonic)
    steps: dict[str, float] = field(default_factory=dict)

    def time(self, name: str, step: Callable[[], T]) -> T:
        """Run a step under a heading with its name, and record its duration."""
        console.rule(f"[bold]{name}", align="left")
        before = time.monotonic()
        result = step()
        self.steps[name] = round(time.monotonic() - before, 1)
        return result


@task
def make_labs(settings: Settings, suffix: str = "") -> tuple[Path, Path]:
    """Generate the two synthetic labs, as incoming folders; the suffix is appended to their names."""
    demo, seed = settings.params.demo, settings.params.seed
    folders = []
    for spec, images, labelled, number in ((LAB_A, demo.images_a, True, 0), (LAB_B, demo.images_b, False, 1)):
        spec = replace(spec, name=spec.name + suffix)
        folder = settings.home.demo / "incoming" / spec.name
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier demo
        with console.status(f"Generating {folder.name}: {images} images"):
            generate_lab(
                folder,
                spec,
                images=images,
                size=demo.image_size,
                labelled=labelled,
                test_images=demo.test_images,
                seed=2 * seed + number,
            )
        folders.append(folder)
    return folders[0], folders[1]


@task
def start_production(version: int, settings: Settings) -> None:
    """Promote the demo's first segmenter."""
    registry = open_workspace(settings).registry
    registry.versions.set_tags(version, {_DEMO_TAG: "yes"})
    registry.production.promote(version, audit=AuditInfo(via="demo", reason="First version of the demo."))


@task
def score_versions(
    versions: Mapping[str, ModelVersion], references: Mapping[str, tuple[Reference, ...]], settings: Settings
) -> dict[str, dict[str, Mapping[str, float]]]:
    """Dice of each version on each lab's held-out test images."""
    workspace = open_workspace(settings)
    total = len(versions) * sum(len(images) for images in references.values())
    scores: dict[str, dict[str, Mapping[str, float]]] = {}
    with progress_bar("Scoring on held-out test images", total) as advance:
        for name, version in versions.items():
            engine = workspace.engine(workspace.network(version))
            scores[name] = {
                lab: mean_scores(score(engine.probabilities, images, engine.classes, advance))
                for lab, images in references.items()
            }
    return scores


@flow(name="demo")
def demo(source: Path | None = None, target: Path | None = None, changes: tuple[str, ...] = ()) -> DemoReport:
    """Run all steps and write the report.

    Args:
        source: Folder of a labelled lab; a synthetic one by default.
        target: Folder of a new lab; a synthetic one by default.
        changes: Parameters that override those of params.yaml, ``section.name=value``.
    """
    timer, settings = _Timer(), load_settings(changes)
    _check_production(settings)
    if source is None or target is None:
        seed = settings.params.seed  # labs of another seed get other names: they are not more images of the same labs
        source, target = timer.time("Generate two labs", lambda: make_labs(settings, f"_{seed}" if seed else ""))
    lab_a, lab_b = read_lab_metadata(source), read_lab_metadata(target)
    # read before the long steps, so that errors in them show early
    references = {"lab_a": held_out_references(source, lab_a), "lab_b": held_out_references(target, lab_b)}
    if not references["lab_b"]:
        raise LabError(
            f"{target / 'test'}: expected images with masks for the report, found none. Add test/images and test/masks."
        )
    timer.time(f"Ingest {lab_a.lab}", lambda: ingest(source, changes=changes))
    first = timer.time("Train the first segmenter", lambda: train((lab_a.lab,), changes=changes))
    start_production(first.version, settings)
    timer.time(f"Ingest {lab_b.lab}", lambda: ingest(target, changes=changes))
    candidate = timer.time(f"Adapt to {lab_b.lab}", lambda: adapt(lab_b.lab, changes=changes))
    timer.time("Evaluate the candidate", lambda: evaluate(str(candidate.version), changes=changes))
    decision = timer.time("Apply the gate", lambda: promote(str(candidate.version), changes=changes))
    out = settings.home.segmentations / lab_b.lab
    batch = timer.time(f"Segment {lab_b.lab}", lambda: segment(target, out=out, changes=changes))
    return timer.time(
        "Report", lambda: _report(settings, (lab_a, lab_b), references, candidate, decision, batch, timer)
    )


def _check_production(settings: Settings) -> None:
    """Refuse to replace a production version that is not from a demo."""
    current = open_workspace(settings).production()
    if current is not None and _DEMO_TAG not in current.tags:
        raise RegistryError(
            f"Version {current.version} is in production and is not from a demo, which would replace it. Run the "
            "demo in another home, for example MICROSEG_HOME=/tmp/microseg-demo."
        )


def _report(
    settings: Settings,
    labs: tuple[LabMetadata, LabMetadata],
    references: Mapping[str, tuple[Reference, ...]],
    candidate: ModelVersion,
    decision: Decision,
    batch: BatchSummary,
    timer: _Timer,
) -> DemoReport:
    workspace = open_workspace(settings)
    registry = workspace.registry
    first, production = registry.versions.find(candidate.tags["base_version"]), registry.versions.find(PRODUCTION)
    registry.versions.set_tags(candidate, {_DEMO_TAG: "yes"})
    source, target = labs
    if not references["lab_a"]:
        dataset, _ = workspace.lab(source.lab, first.datasets[source.lab])
        references = {**references, "lab_a": lab_references(dataset, "test")}
    scores = score_versions({"before": first, "candidate": candidate}, references, settings)
    scores["after"] = scores["candidate" if production.version == candidate.version else "before"]
    dice = {lab: Change(scores["before"][lab]["dice"], scores["after"][lab]["dice"]) for lab in references}
    folder = settings.home.demo
    engines = {
        f"{name}: version {version.version}": workspace.engine(workspace.network(version))
        for name, version in (("before", first), ("candidate", candidate))
    }
    panels = reference_panels(engines, references["lab_b"], target.classes, folder / "panels")
    comparison = read_comparison(candidate, first, settings)
    assert comparison is not None
    before_evidence = comparison.production.label_free if comparison.production else {}
    lost = dice["lab_a"].before - dice["lab_b"].before
    result = DemoReport(
        labs={"lab_a": source.lab, "lab_b": target.lab},
        dice=dice,
        dice_per_class={
            lab: {
                name.removeprefix("dice_"): Change(scores["before"][lab][name], scores["after"][lab][name])
                for name in scores["before"][lab]
                if name.startswith("dice_")
            }
            for lab in references
        },
        candidate_dice={lab: values["dice"] for lab, values in scores["candidate"].items()},
        upper_bound=None,
        recovered=(dice["lab_b"].after - dice["lab_b"].before) / lost if lost > 0 else None,
        images={lab: len(images) for lab, images in references.items()},
        decision=decision,
        evidence={name: (value, before_evidence.get(name)) for name, value in comparison.candidate.label_free.items()},
        candidate_version=candidate.version,
        production_version=production.version,
        lineage=_lineage(production, batch, settings),
        batch={"images": batch.images, "done": batch.done, "skipped": batch.skipped, "failed": batch.failed},
        timings=timer.steps,
        seconds=round(time.monotonic() - timer.start, 1),
        outputs={
            "page": str(folder / "report.html"),
            "report": str(folder / "report.json"),
            "panels": str(folder / "panels"),
            "segmentations": str(batch.out),
            "measurements": str(batch.measurements),
            "datasets": str(settings.home.labs),
        },
    )
    write_report(result, folder / "report.json")
    overlays = sorted(batch.out.glob("*.overlay.jpg"))[:_OVERLAYS]
    write_page(result, panels, overlays, folder / "report.html")
    return result


def _lineage(production: ModelVersion, batch: BatchSummary, settings: Settings) -> dict[str, str]:
    return {
        "outputs": str(batch.out),
        "model": f"version {production.version} ({production.tags.get('method', '')})",
        "run": production.run_id,
        **{f"dataset {lab}": digest for lab, digest in production.datasets.items()},
        "code": production.tags.get("commit", "unknown"),
        "parameters": str(settings.params_file or "defaults"),
        "registry": mask_secrets(settings.environment.tracking_uri),
    }


@cli_command(home="create")
def command(
    source: Annotated[
        Path | None, typer.Option(help="Folder of a labelled lab: images/, masks/, lab.yaml, optional test/.")
    ] = None,
    target: Annotated[
        Path | None, typer.Option(help="Folder of a new lab: images/, lab.yaml, and test/ for the report.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of labs and training; that of params.yaml by default.")] = None,
    changes: SetOption = None,
) -> None:
    """Run all steps on two labs: train, adapt, evaluate, promote, segment; and write a report.

    Example: microseg demo --source labs/he --target labs/ihc
    """
    if (source is None) != (target is None):
        raise LabError("Expected both --source and --target, or neither: the two labs must have the same classes.")
    overrides = (*(changes or ()), *([f"seed={seed}"] if seed is not None else []))
    result = demo(source.absolute() if source else None, target.absolute() if target else None, overrides)
    rows = [
        (f"{result.labs[key]} ({result.images[key]} images)", change.before, change.after)
        for key, change in result.dice.items()
    ]
    show_table("Dice on held-out test images", ("lab", "before", "after"), rows)
    decision = {ACCEPTED: "accepted and in production", REFUSED: "refused by the gate"}.get(
        result.decision.verdict, "needs review (the gate cannot tell)"
    )
    console.print(
        f"Candidate (version {result.candidate_version}) {decision}; "
        f"version {result.production_version} is in production."
    )
    if result.recovered is not None:
        console.print(f"Adaptation recovered {100 * result.recovered:.0f} % of the Dice lost on the new lab.")
    console.print(f"Report:        {result.outputs['page']}", soft_wrap=True)
    console.print(f"Segmentations: {result.outputs['segmentations']}", soft_wrap=True)
    console.print("Next: microseg service local-servers shows the models in MLflow and the runs in Prefect.")


if __name__ == "__main__":
    typer.run(command)
