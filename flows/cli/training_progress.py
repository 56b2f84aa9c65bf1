"""Progress of a training in the terminal, in its MLflow run and in its Prefect flow run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from flows.cli.console import progress_bar
from microseg.config.params import FitSettings
from microseg.registry.runs import RunLog
from microseg.training.devices import Progress

__all__ = ["training_progress"]

_LOG_INTERVAL = 10  # steps, to limit the load of the servers


@contextmanager
def training_progress(title: str, settings: FitSettings, run: RunLog) -> Iterator[Progress]:
    """Show a training: a progress bar in the terminal, curves in MLflow, a progress artifact in Prefect.

    Args:
        title: Title of the training.
        settings: States the number of steps.
        run: Run of the training in MLflow.
    """
    artifact = create_progress_artifact(0.0, description=title)
    assert isinstance(artifact, UUID)  # not a coroutine: tasks are synchronous
    with progress_bar(title, settings.steps) as advance:

        def on_step(step: int, losses: Mapping[str, float]) -> None:
            advance(f"loss {losses['total']:.3f}")
            if step % _LOG_INTERVAL == 0 or step == settings.steps:
                run.log_metrics({f"loss/{name}": value for name, value in losses.items()}, step)
                update_progress_artifact(artifact, 100 * step / settings.steps)

        def on_evaluation(step: int, metrics: Mapping[str, float]) -> None:
            run.log_metrics({f"held_out/{name}": value for name, value in metrics.items()}, step)

        yield Progress(on_step, on_evaluation)
    update_progress_artifact(artifact, 100.0)
