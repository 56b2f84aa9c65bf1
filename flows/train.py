"""Labelled labs → the first segmenter, registered, and in production when there is none yet.

python -m flows.train lab_a
"""

from typing import Annotated

import numpy as np
import typer
from prefect import flow, task

from flows.audit import cause
from flows.cli.console import console, progress_bar, show_table
from flows.cli.options import RecordOption, SetOption, cli_command, finish
from flows.cli.training_progress import training_progress
from flows.records import TrainRecord
from flows.workspace import SOURCE_METHOD, open_workspace
from microseg.api.training import train as train_segmenter
from microseg.config.settings import Settings, load_settings
from microseg.errors import LabError, VersionNotFoundError
from microseg.evaluation.comparison import Comparison, compare
from microseg.registry.gate import decide
from microseg.registry.version import PRODUCTION, ModelVersion
from microseg.training.devices import make_fabric

__all__ = ["command", "train"]


@task
def fit_and_register(digests: dict[str, str], settings: Settings) -> ModelVersion:
    """Train on the labs' datasets and register the network."""
    labs = [open_workspace(settings).lab(lab, digest)[0] for lab, digest in digests.items()]
    params, registry = settings.params, open_workspace(settings).registry
    name = "train " + " ".join(digests)
    folder = settings.home.runs / "train" / "-".join(digests)
    with registry.run(name, params=params.model_dump(include={"seed", "network", "train"})) as run:
        with training_progress(f"Training on {', '.join(digests)}", params.train, run) as progress:
            training = train_segmenter(
                labs,
                params.network,
                params.train,
                folder=folder,
                seed=params.seed,
                fabric=make_fabric(params.device, devices=params.devices, precision=params.precision),
                progress=progress,
            )
        with console.status("Registering the segmenter"):
            return open_workspace(settings).register_model(
                run, folder, training, source=labs, digests=digests, method=SOURCE_METHOD
            )


@task
def evaluate_held_out(version: ModelVersion, digests: dict[str, str], settings: Settings) -> Comparison:
    """Dice of the new version on the labs' held-out images."""
    labs = [open_workspace(settings).lab(lab, digest)[0] for lab, digest in digests.items()]
    total = sum(len(lab.select(split="test", labelled=True)) for lab in labs)
    with progress_bar("Evaluating on held-out images", total) as advance:
        comparison = compare(
            open_workspace(settings).network(version), None, source=labs, target=None, on_image=advance
        )
    figures = {
        f"{name}/{lab}": v[0] for lab, s in comparison.scores.items() for name, v in s.items() if v[0] is not None
    }
    open_workspace(settings).registry.log_metrics_for(version, figures)
    return comparison


@task
def put_first_into_production(
    version: ModelVersion, comparison: Comparison, settings: Settings
) -> tuple[bool, list[str]]:
    """Promote the version if nothing is in production yet and the gate accepts it as a first one."""
    registry = open_workspace(settings).registry
    try:
        current = registry.resolve(PRODUCTION)
    except VersionNotFoundError:
        decision = decide(comparison.candidate, None, settings.params.gate)
        open_workspace(settings).update_model_card(version, comparison, decision, None)
        if decision.accept:
            told = cause(gate="accepted", reason="The first version.")
            registry.promote(version, cause=told)
        return decision.accept, [reason.sentence for reason in decision.reasons]
    return False, [
        f"Version {current.version} is in production; promote this one with `microseg promote {version.version}`."
    ]


@flow(name="train", flow_run_name="train on {labs}")
def train(labs: tuple[str, ...], changes: tuple[str, ...] = ()) -> TrainRecord:
    """Train a segmenter on labelled labs and register it.

    Args:
        labs: names of ingested labs.
        changes: parameters that replace those of params.yaml, ``section.name=value``.
    """
    settings = load_settings(changes)
    if not labs:
        raise LabError("Expected at least one labelled lab to train on, got none: give the names of ingested labs.")
    digests = {lab: open_workspace(settings).lab(lab, None)[1] for lab in labs}
    version = fit_and_register(digests, settings)
    comparison = evaluate_held_out(version, digests, settings)
    production, reasons = put_first_into_production(version, comparison, settings)
    dice = {lab: value if np.isfinite(value) else None for lab, value in comparison.candidate.source_dice.items()}
    return TrainRecord(version.version, version.run_id, digests, dice, production, reasons)


@cli_command
def command(
    labs: Annotated[list[str], typer.Argument(help="Names of ingested, labelled labs.")],
    record: RecordOption = None,
    changes: SetOption = None,
) -> None:
    """Train the first segmenter from labelled labs; it goes into production when there is none yet.

    Example: microseg train lab_a --set train.steps=1000
    """
    result = train(tuple(labs), tuple(changes or ()))
    show_table(f"Version {result.version}", ("lab", "Dice, held-out"), list(result.dice.items()))
    console.print("In production." if result.production else "Not in production.", *result.reasons)
    finish(result, record)


if __name__ == "__main__":
    typer.run(command)
