"""Adapt a segmenter to a target lab without labels from it, and register the result as the candidate.

    python -m flows.adapt lab_b

The source labs are read at the dataset versions that the base version was trained with.
"""

from collections.abc import Mapping
from typing import Annotated

import typer
from prefect import flow, task

from flows.cli.console import console, show_table
from flows.cli.options import RecordOption, SetOption, cli_command, finish
from flows.cli.training_progress import training_folder, training_progress
from flows.registration import register_model
from flows.workspace import Workspace, open_workspace
from microseg.api.training import adapt as adapt_segmenter
from microseg.config.settings import Settings, load_settings
from microseg.errors import LabError
from microseg.registry.version import PRODUCTION, SOURCE_TAG, ModelVersion, candidate_of
from microseg.training.devices import make_fabric

__all__ = ["adapt", "command"]


@task
def fit_and_register(base: ModelVersion, lab: str, digest: str, settings: Settings) -> ModelVersion:
    """Adapt the base version to the lab and register the result as the candidate.

    The target labs that the base version was adapted to before are included, so that it remains adapted to them. With
    ``adapt.source: none`` no other lab's dataset is read.
    """
    workspace, params = open_workspace(settings), settings.params
    source_free = params.adapt.source == "none"
    others = {} if source_free else {name: it for name, it in base.datasets.items() if name != lab}
    source, earlier = workspace.labs(others)
    if not source and not source_free:
        raise LabError(
            f"Expected labelled labs among the datasets of version {base.version}, found none: {dict(base.datasets)}."
        )
    targets = [*earlier, workspace.lab(lab, digest)[0]]
    folder = settings.home.runs / "adapt" / f"{lab}-from-{base.version}"
    logged = params.model_dump(include={"seed", "adapt"})
    tags = {"base_version": str(base.version), "target": lab, SOURCE_TAG: params.adapt.source}
    with training_folder(folder, f"the adaptation to {lab} from version {base.version}"):
        version = _registered_before(tags, digest, logged, workspace)
        if version is not None:
            workspace.registry.runs.finish(version.run_id)
            return workspace.registry.versions.set_alias(candidate_of(lab), version)
        with workspace.registry.runs.start(
            f"adapt to {lab}", params=logged, tags={"base_version": str(base.version), "lab": lab}
        ) as run:
            with training_progress(f"Adapting to {lab}", params.adapt, run) as progress:
                training = adapt_segmenter(
                    workspace.network(base),
                    source,
                    targets,
                    params.adapt,
                    folder=folder,
                    seed=params.seed,
                    fabric=make_fabric(
                        params.device,
                        devices=params.devices,
                        precision=params.precision,
                        timeout_minutes=params.timeout_minutes,
                    ),
                    progress=progress,
                    keep_checkpoint=True,
                )
            with console.status("Registering the candidate"):
                version = register_model(
                    workspace,
                    run,
                    folder,
                    training,
                    source=source,
                    target=targets,
                    digests={**base.datasets, lab: digest},
                    method=params.adapt.method_in_use,
                    base=base if source_free else None,
                    tags=tags,
                )
                # before the run ends: of a finished run, nobody would look for a version that is to be the candidate
                return workspace.registry.versions.set_alias(candidate_of(lab), version)


def _registered_before(
    tags: Mapping[str, str], digest: str, params: Mapping[str, object], workspace: Workspace
) -> ModelVersion | None:
    """The version that a process registered before it was killed, with the same datasets and parameters."""
    for version in workspace.registry.versions.all():
        same = tags.items() <= version.tags.items() and version.datasets.get(tags["target"]) == digest
        if same and workspace.registry.runs.was_interrupted(version.run_id, params):
            return version
    return None


@flow(name="adapt", flow_run_name="adapt to {lab}")
def adapt(lab: str, base: str = PRODUCTION, digest: str | None = None, changes: tuple[str, ...] = ()) -> ModelVersion:
    """Adapt a version to a target lab without its labels; the result becomes the candidate.

    Args:
        lab: Name of the ingested lab.
        base: Version or alias to start from.
        digest: Version of the lab's dataset; None for the latest.
        changes: Values that override parameters, ``section.name=value``.

    Returns:
        The candidate.
    """
    settings = load_settings(changes)
    workspace = open_workspace(settings)
    base_version = workspace.registry.versions.find(base)
    _, digest = workspace.lab(lab, digest)
    return fit_and_register(base_version, lab, digest, settings)


@cli_command()
def command(
    lab: Annotated[str, typer.Argument(help="Name of the ingested lab.")],
    base: Annotated[str, typer.Option(help="Version or alias to start from.")] = PRODUCTION,
    digest: Annotated[str | None, typer.Option(help="Version of the lab's dataset; the latest by default.")] = None,
    record: RecordOption = None,
    changes: SetOption = None,
) -> None:
    """Adapt the production segmenter to a target lab without its labels; the result becomes the candidate.

    Where source images may not leave their hospital, --set adapt.source=none adapts without them.

    Example: microseg adapt lab_b --set adapt.max_minutes=60
    """
    result = adapt(lab, base, digest, tuple(changes or ()))
    show_table(
        f"Candidate: version {result.version}",
        ("adapted from version", "to lab", "trained on"),
        [(result.tags["base_version"], lab, ", ".join(result.datasets))],
    )
    if result.source_free:
        console.print(
            "No source image was read. The gate accepts the candidate only where its Dice on held-out images of a "
            "source lab is known: run microseg evaluate where they are."
        )
    console.print(f"Next: microseg evaluate {result.version}")
    finish(result, record)


if __name__ == "__main__":
    typer.run(command)
