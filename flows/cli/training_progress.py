"""Progress of a training in the terminal, in its MLflow run and in its Prefect flow run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from flows.cli.console import progress_bar
from flows.telemetry import attempt, report
from microseg.config.training_params import FitSettings
from microseg.locks import exclusive
from microseg.registry.runs import RunLog
from microseg.training.checkpoints import remove_checkpoints
from microseg.training.devices import Progress

__all__ = ["training_folder", "training_progress"]

_LOG_INTERVAL = 10  # steps, to limit the load of the servers
_LINES = 10  # lines of a training in the log


@contextmanager
def training_folder(folder: Path, what: str) -> Iterator[None]:
    """Lock the folder of a training, and remove the checkpoint when its network is registered.

    Until then a run that is started again continues, or finds the training finished.

    Args:
        folder: Folder that the network is written to.
        what: The training, for messages.
    """
    lock = folder.with_name(f".{folder.name}.lock")
    with exclusive(lock, what, waiting=report):
        yield
        remove_checkpoints(folder)


@contextmanager
def training_progress(title: str, settings: FitSettings, run: RunLog) -> Iterator[Progress]:
    """Show a training: a progress bar in the terminal, curves in MLflow, a progress artifact and lines in Prefect.

    What cannot be shown is left out with a warning; the training goes on.

    Args:
        title: Title of the training.
        settings: States the number of steps.
        run: Run of the training in MLflow.
    """
    log = get_run_logger()
    artifact = attempt(create_progress_artifact, 0.0, description=title)
    every = max(1, settings.steps // _LINES)

    def show(percent: float) -> None:
        if artifact is not None:
            attempt(update_progress_artifact, artifact, percent)

    with progress_bar(title, settings.steps) as advance:

        def on_step(step: int, losses: Mapping[str, float]) -> None:
            advance(f"loss {losses['total']:.3f}")
            if step % every == 0 or step == settings.steps:
                log.info("%s: step %d of %d, loss %.3f", title, step, settings.steps, losses["total"])
            if step % _LOG_INTERVAL == 0 or step == settings.steps:
                run.log_metrics({f"loss/{name}": value for name, value in losses.items()}, step)
                show(100 * step / settings.steps)

        def on_evaluation(step: int, metrics: Mapping[str, float]) -> None:
            run.log_metrics({f"held_out/{name}": value for name, value in metrics.items()}, step)

        yield Progress(on_step, on_evaluation)
    show(100.0)
