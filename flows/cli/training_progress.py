"""A training told to everyone who looks on: the terminal, the MLflow run, the Prefect flow run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from flows.cli.console import progress_bar
from microseg.config.params import FitSettings
from microseg.registry.runs import RunLog
from microseg.training.devices import Progress

__all__ = ["training_progress"]

_LOGGED_EVERY = 10  # steps, for the servers' sake


@contextmanager
def training_progress(title: str, settings: FitSettings, run: RunLog) -> Iterator[Progress]:
    """Progress of a training: a bar in the terminal, curves in MLflow, a progress artifact in Prefect.

    Args:
        title: what is trained.
        settings: its number of steps.
        run: of MLflow.
    """
    artifact = create_progress_artifact(0.0, description=title)
    assert isinstance(artifact, UUID)  # not awaited: tasks are synchronous
    with progress_bar(title, settings.steps) as advance:

        def on_step(step: int, losses: Mapping[str, float]) -> None:
            advance(f"loss {losses['total']:.3f}")
            if step % _LOGGED_EVERY == 0 or step == settings.steps:
                run.log_metrics({f"loss/{name}": value for name, value in losses.items()}, step)
                update_progress_artifact(artifact, 100 * step / settings.steps)

        def on_evaluation(step: int, figures: Mapping[str, float]) -> None:
            run.log_metrics({f"held_out/{name}": value for name, value in figures.items()}, step)

        yield Progress(on_step, on_evaluation)
    update_progress_artifact(artifact, 100.0)
