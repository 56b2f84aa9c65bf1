"""A lab's folder → a checked, versioned dataset.

    python -m flows.ingest incoming/lab_c

The folder holds images/, where labelled masks/ with the same names (class indices), and lab.yaml. Files that cannot
be used, whole slides among them, go to the quarantine with the reason; everything else becomes a version of the lab's
dataset, pushed to the DVC remote.
"""

from pathlib import Path
from typing import Annotated

import typer
from prefect import flow, task
from prefect.artifacts import create_table_artifact

from flows.cli.console import console, progress_bar, show_table
from flows.cli.options import RecordOption, SetOption, cli_command, finish
from flows.records import IngestRecord
from flows.workspace import open_workspace
from microseg.config.settings import Settings, load_settings
from microseg.datasets.ingest import IngestResult, ingest_lab
from microseg.datasets.lab import read_lab_metadata
from microseg.datasets.versions.store import DatasetVersion

__all__ = ["command", "ingest"]


@task
def check_and_ingest(folder: Path, lab: str | None, settings: Settings) -> IngestResult:
    """Check every file, take over what can be used, put the rest into quarantine."""
    home, data = settings.home, settings.params.data
    if folder.is_dir() and open_workspace(settings).datasets.ensure_present(
        name := read_lab_metadata(folder, lab=lab).lab
    ):
        console.print(f"The dataset of {name} was not on this machine: its last version is back.")
    with progress_bar(f"Checking {folder.name}", None) as advance:
        return ingest_lab(
            folder,
            home.labs,
            home.quarantine,
            name=lab,
            val_fraction=data.val_fraction,
            test_fraction=data.test_fraction,
            seed=settings.params.seed,
            progress=lambda done, total: advance(f"{done} of {total}"),
        )


@task
def create_version(lab: str, settings: Settings) -> DatasetVersion:
    """Version the dataset and push it to the remote."""
    with console.status(f"Versioning {lab} with DVC"):
        return open_workspace(settings).datasets.commit(lab)


@flow(name="ingest", flow_run_name="ingest {folder}")
def ingest(folder: Path, lab: str | None = None, changes: tuple[str, ...] = ()) -> IngestRecord:
    """Check a lab's delivery and make it a version of the lab's dataset.

    Args:
        folder: with images/, lab.yaml, and masks/ where labelled.
        lab: its name, where lab.yaml does not state one.
        changes: parameters that replace those of params.yaml, ``section.name=value``.
    """
    settings = load_settings(changes)
    settings.home.create()
    prepared = check_and_ingest(folder, lab, settings)
    version = create_version(prepared.lab, settings)
    if prepared.refused:
        rows = [{"file": refusal.file, "reason": refusal.reason} for refusal in prepared.refused]
        create_table_artifact(rows, key=f"refused-{_key(prepared.lab)}", description=f"Refused files of {prepared.lab}")
    return IngestRecord(
        lab=prepared.lab,
        digest=version.digest,
        images=prepared.images,
        labelled=prepared.labelled,
        refused=len(prepared.refused),
        quarantine=str(settings.home.quarantine / prepared.lab) if prepared.refused else None,
        slides=prepared.slides,
    )


def _key(lab: str) -> str:
    return lab.lower().replace("_", "-")


@cli_command(home="create")
def command(
    folder: Annotated[Path, typer.Argument(help="The lab's folder: images/, masks/ where labelled, lab.yaml.")],
    lab: Annotated[str | None, typer.Option(help="The lab's name, where lab.yaml does not state one.")] = None,
    record: RecordOption = None,
    changes: SetOption = None,
) -> None:
    """Check a lab's folder and make it a version of the lab's dataset.

    Files that cannot be used are copied to the quarantine with the reason. Example: microseg ingest incoming/lab_c
    """
    result = ingest(folder.absolute(), lab, tuple(changes or ()))
    show_table(
        f"Lab {result.lab}",
        ("images", "with mask", "refused", "dataset version"),
        [(result.images, result.labelled, result.refused, result.digest)],
    )
    if result.quarantine:
        console.print(f"[yellow]{result.refusals}[/]")
    finish(result, record)


if __name__ == "__main__":
    typer.run(command)
