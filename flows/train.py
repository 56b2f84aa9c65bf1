"""Train a segmenter on labelled labs, register it, and promote it if no version is in production.

python -m flows.train lab_a
"""

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import typer
from prefect import flow, task

from flows.cli.console import console, progress_bar, show_table
from flows.cli.options import RecordOption, SetOption, cli_command, finish
from flows.cli.training_progress import training_folder, training_progress
from flows.decision import decide
from flows.evidence import evidence_key
from flows.promote import audit_info
from flows.registration import register_model
from flows.workspace import open_workspace
from microseg.api.training import train as train_segmenter
from microseg.config.settings import Settings, load_settings
from microseg.errors import LabError
from microseg.evaluation.comparison import Comparison, compare
from microseg.registry.decision import Decision
from microseg.registry.production import Judgement
from microseg.registry.version import ModelVersion
from microseg.training.devices import make_fabric

__all__ = ["TrainResult", "command", "train"]

_METHOD = "supervised"  # of versions, as `adapt.method` is of others


@dataclass(frozen=True)
class TrainResult:
    """A first segmenter.

    Attributes:
        version: Its version in the registry.
        dice: Dice on the held-out images of each lab; None where there are none.
        decision: Decision of the gate; None if another version is in production.
    """

    version: int
    dice: dict[str, float | None]
    decision: Decision | None


@task
def fit_and_register(digests: dict[str, str], settings: Settings) -> ModelVersion:
    """Train on the labs' datasets and register the network."""
    workspace = open_workspace(settings)
    labs = [workspace.lab(lab, digest)[0] for lab, digest in digests.items()]
    params = settings.params
    name = "train " + " ".join(digests)
    folder = settings.home.runs / "train" / "-".join(digests)
    logged = params.model_dump(include={"seed", "network", "train"})
    with (
        training_folder(folder, f"the training on {', '.join(digests)}"),
        workspace.registry.runs.start(name, params=logged) as run,
    ):
        with training_progress(f"Training on {', '.join(digests)}", params.train, run) as progress:
            training = train_segmenter(
                labs,
                params.network,
                params.train,
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
        with console.status("Registering the segmenter"):
            return register_model(workspace, run, folder, training, source=labs, digests=digests, method=_METHOD)


@task
def evaluate_held_out(version: ModelVersion, digests: dict[str, str], settings: Settings) -> Comparison:
    """Dice of the new version on the labs' held-out images."""
    workspace = open_workspace(settings)
    labs = [workspace.lab(lab, digest)[0] for lab, digest in digests.items()]
    total = sum(len(lab.select(split="test", labelled=True)) for lab in labs)
    with progress_bar("Evaluating on held-out images", total) as advance:
        comparison = compare(workspace.network(version), None, source=labs, target=None, on_image=advance)
    workspace.registry.evidence.write(version, evidence_key(workspace, version, None, None), comparison.to_json())
    for lab, metrics in comparison.metrics().items():
        workspace.registry.versions.log_metrics(version, metrics, dataset=(lab, digests[lab]))
    return comparison


@task
def promote_first_version(version: ModelVersion, comparison: Comparison, settings: Settings) -> Decision | None:
    """Promote the version if none is in production and the gate accepts it; None if one is in production already."""
    workspace = open_workspace(settings)
    if workspace.production() is not None:
        return None
    decision = decide(workspace, version, None, comparison)
    if decision.promoted:
        audit = audit_info(gate=decision.status, reason="The first version.")
        production = workspace.registry.production
        request = production.request(version.version, audit=audit)
        other = replace(audit, reason="Another version was promoted first.")
        outcome = production.decide(
            request, lambda against: Judgement(against is None, other if against is not None else audit)
        )
        return decision if outcome == "active" else None
    return decision


@flow(name="train", flow_run_name="train on {labs}")
def train(labs: tuple[str, ...], changes: tuple[str, ...] = ()) -> TrainResult:
    """Train a segmenter on labelled labs and register it.

    Args:
        labs: Names of ingested labs.
        changes: Values that override parameters, ``section.name=value``.
    """
    settings = load_settings(changes)
    if not labs:
        raise LabError("Expected at least one labelled lab to train on, got none: give the names of ingested labs.")
    digests = {lab: open_workspace(settings).lab(lab, None)[1] for lab in labs}
    version = fit_and_register(digests, settings)
    comparison = evaluate_held_out(version, digests, settings)
    decision = promote_first_version(version, comparison, settings)
    dice = {lab: value if np.isfinite(value) else None for lab, value in comparison.candidate.source_dice.items()}
    return TrainResult(version.version, dice, decision)


@cli_command()
def command(
    labs: Annotated[list[str], typer.Argument(help="Names of ingested, labelled labs.")],
    record: RecordOption = None,
    changes: SetOption = None,
) -> None:
    """Train a segmenter on labelled labs; it goes into production if no version is there yet.

    Example: microseg train lab_a --set train.steps=1000
    """
    result = train(tuple(labs), tuple(changes or ()))
    show_table(f"Version {result.version}", ("lab", "Dice, held-out"), list(result.dice.items()))
    if result.decision is None:
        console.print(f"Another version is in production. Next: microseg promote {result.version}")
    else:
        for line in result.decision.markdown():
            console.print(f"  {line.removeprefix('- ')}", markup=False)
        if result.decision.promoted:
            console.print(f"Version {result.version} is in production. Next: microseg segment FOLDER")
        else:
            console.print(f"{result.decision} {result.decision.next_step()}", markup=False)
    finish(result, record)


if __name__ == "__main__":
    typer.run(command)
