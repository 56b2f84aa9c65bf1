"""A new lab → a candidate segmenter, adapted to it without any label from it (model-migration mode).

    python -m flows.adapt lab_b

The labelled labs are read back at the very dataset versions that the production model was trained with.
"""

from typing import Annotated

import typer
from prefect import flow, task

from flows.cli.console import console, show_table
from flows.cli.options import RecordOption, SetOption, cli_command, finish
from flows.cli.training_progress import training_progress
from flows.records import AdaptRecord
from flows.workspace import open_workspace
from microseg.api.training import adapt as adapt_segmenter
from microseg.config.settings import Settings, load_settings
from microseg.errors import LabError
from microseg.registry.version import CANDIDATE, PRODUCTION, ModelVersion
from microseg.training.devices import make_fabric

__all__ = ["adapt", "command"]


@task
def fit_and_register(base: ModelVersion, lab: str, digest: str, settings: Settings) -> tuple[ModelVersion, float]:
    """Adapt the base version to the lab and register the result as the candidate.

    Labs that the base was adapted to before are adapted to again, so that they are not lost.
    """
    source, earlier = open_workspace(settings).labs({name: it for name, it in base.datasets.items() if name != lab})
    if not source:
        raise LabError(
            f"Expected labelled labs among the datasets of version {base.version}, found none: {dict(base.datasets)}."
        )
    targets = [*earlier, open_workspace(settings).lab(lab, digest)[0]]
    params, registry = settings.params, open_workspace(settings).registry
    folder = settings.home.runs / "adapt" / f"{lab}-from-{base.version}"
    logged = params.model_dump(include={"seed", "adapt"})
    with registry.runs.start(
        f"adapt to {lab}", params=logged, tags={"base_version": str(base.version), "lab": lab}
    ) as run:
        with training_progress(f"Adapting to {lab}", params.adapt, run) as progress:
            training = adapt_segmenter(
                open_workspace(settings).network(base),
                source,
                targets,
                params.adapt,
                folder=folder,
                seed=params.seed,
                fabric=make_fabric(params.device, devices=params.devices, precision=params.precision),
                progress=progress,
            )
        with console.status("Registering the candidate"):
            tags = {"base_version": str(base.version), "target": lab}
            version = open_workspace(settings).register_model(
                run,
                folder,
                training,
                source=source,
                target=targets,
                digests={**base.datasets, lab: digest},
                method=params.adapt.method,
                tags=tags,
            )
    return registry.versions.set_alias(CANDIDATE, version), training.seconds


@flow(name="adapt", flow_run_name="adapt to {lab}")
def adapt(lab: str, base: str = PRODUCTION, digest: str | None = None, changes: tuple[str, ...] = ()) -> AdaptRecord:
    """Adapt a version to a new lab without its labels, and propose the result as candidate.

    Args:
        lab: name of the ingested lab.
        base: version or alias to start from.
        digest: version of the lab's dataset; the last one ingested by default.
        changes: parameters that replace those of params.yaml, ``section.name=value``.
    """
    settings = load_settings(changes)
    base_version = open_workspace(settings).registry.versions.find(base)
    _, digest = open_workspace(settings).lab(lab, digest)
    version, seconds = fit_and_register(base_version, lab, digest, settings)
    source = {name: it for name, it in base_version.datasets.items() if name != lab}
    return AdaptRecord(version.version, version.run_id, base_version.version, source, {lab: digest}, seconds)


@cli_command
def command(
    lab: Annotated[str, typer.Argument(help="Name of the ingested lab.")],
    base: Annotated[str, typer.Option(help="Version or alias to start from.")] = PRODUCTION,
    digest: Annotated[str | None, typer.Option(help="Version of the lab's dataset; the last one by default.")] = None,
    record: RecordOption = None,
    changes: SetOption = None,
) -> None:
    """Adapt the production segmenter to a new lab, without its labels; the result is proposed as candidate.

    Example: microseg adapt lab_b --set adapt.lambda_image=0
    """
    result = adapt(lab, base, digest, tuple(changes or ()))
    show_table(
        f"Candidate: version {result.version}",
        ("adapted from version", "labelled labs read back", "seconds"),
        [(result.base, ", ".join(result.source), round(result.seconds))],
    )
    console.print("Judge it with: microseg evaluate, then promote it with: microseg promote")
    finish(result, record)


if __name__ == "__main__":
    typer.run(command)
