"""Check the images of a lab and commit them as a version of the lab's dataset.

    python -m flows.ingest incoming/lab_c

The folder has images/ with images and whole slides, where labelled masks/ (class indices) or annotations/ with the same
names, and lab.yaml. Rejected files are copied to the quarantine with the reason; all others are added to the lab's
dataset, which is committed and pushed to the DVC remote.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from prefect import flow, task
from prefect.artifacts import create_table_artifact

from flows.cli.console import console, progress_bar, show_table
from flows.cli.options import RecordOption, SetOption, cli_command, finish
from flows.telemetry import attempt, report
from flows.workspace import open_workspace
from microseg.config.settings import Settings, load_settings
from microseg.datasets.fields import FieldRecipe
from microseg.datasets.ingest import IngestResult, ingest_lab
from microseg.datasets.lab import LabMetadata, read_lab_metadata
from microseg.datasets.slide_update import SlideOptions

__all__ = ["command", "ingest"]


@task
def check_and_ingest(folder: Path, metadata: LabMetadata, settings: Settings) -> IngestResult:
    """Check every file, add the accepted ones to the lab's dataset, copy the others to the quarantine."""
    home, data = settings.home, settings.params.data
    if open_workspace(settings).datasets.ensure_current(metadata.lab):
        report(f"The latest version of the dataset of {metadata.lab}, of another machine, was restored here.")
    with progress_bar(f"Checking {folder.name}", None) as advance:
        return ingest_lab(
            folder,
            home.labs,
            home.quarantine,
            metadata=metadata,
            val_fraction=data.val_fraction,
            test_fraction=data.test_fraction,
            seed=settings.params.seed,
            allowed_roots=settings.allowed_roots,
            slides=SlideOptions(
                FieldRecipe(data.slide_fields, data.field_microns, settings.params.seed), data.slides == "reference"
            ),
            progress=lambda done, total: advance(f"{done} of {total}"),
        )


@task
def commit_version(lab: str, settings: Settings) -> str:
    """Commit the dataset with DVC and push it to the remote; returns the version's digest."""
    with console.status(f"Committing {lab} with DVC"):
        return open_workspace(settings).datasets.commit(lab).digest


@flow(name="ingest", flow_run_name="ingest {folder}")
def ingest(
    folder: Path,
    lab: str | None = None,
    changes: tuple[str, ...] = (),
    metadata: LabMetadata | None = None,
) -> IngestResult:
    """Check the images of a lab and commit them as a version of the lab's dataset.

    Args:
        folder: The incoming dataset: images/, lab.yaml, and masks/ where labelled.
        lab: Name of the lab, where lab.yaml states none.
        changes: Parameters that override those of params.yaml, ``section.name=value``.
        metadata: Contents of lab.yaml, where it was read already.

    Returns:
        What was ingested and what was rejected, with the digest of the version.

    Raises:
        LabError: The incoming dataset cannot be used.
        VersioningError: The version cannot be committed or pushed.
    """
    settings = load_settings(changes)
    settings.home.create()
    if metadata is None:
        metadata = read_lab_metadata(folder, lab=lab, roots=settings.allowed_roots)
    result = check_and_ingest(folder, metadata, settings)
    result = replace(result, digest=commit_version(result.lab, settings))
    if result.rejected:
        rows = [{"file": rejected.file, "reason": rejected.reason} for rejected in result.rejected]
        key = f"rejected-{result.lab.replace('_', '-')}"
        attempt(create_table_artifact, rows, key=key, description=f"Rejected files of {result.lab}")
    return result


@cli_command(home="create")
def command(
    folder: Annotated[Path, typer.Argument(help="The lab's folder: images/, masks/ where labelled, lab.yaml.")],
    lab: Annotated[str | None, typer.Option(help="Name of the lab, where lab.yaml states none.")] = None,
    record: RecordOption = None,
    changes: SetOption = None,
) -> None:
    """Check a lab's folder and commit its images and slides as a version of the lab's dataset.

    Rejected files are copied to the quarantine with the reason.

    Example: microseg ingest incoming/lab_c
    """
    result = ingest(folder.absolute(), lab, tuple(changes or ()))
    show_table(
        f"Lab {result.lab}",
        ("images", "slides", "with labels", "rejected", "dataset version"),
        [(result.images - result.slides, result.slides, result.labelled, len(result.rejected), result.digest)],
    )
    for note in result.notes:
        console.print(note, style="yellow", markup=False, soft_wrap=True)
    if result.rejections:
        console.print(result.rejections, style="yellow", markup=False)
    console.print(f"Next: microseg {'train' if result.labelled == result.images else 'adapt'} {result.lab}")
    finish(result, record)


if __name__ == "__main__":
    typer.run(command)
