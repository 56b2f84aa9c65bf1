"""Parts of a batch done by several processes or machines at once: Prefect's Dask task runner."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from prefect import Task

from microseg.config.settings import Settings
from microseg.errors import SettingsError

__all__ = ["map_on_dask"]


Part = TypeVar("Part")


def map_on_dask(
    work: Task[..., Any],
    parts: Sequence[Part],
    order: object,
    settings: Settings,
    advance: Callable[[Part], object],
) -> list[Any]:
    """Run a task once for each part, on Dask.

    A worker that dies is replaced, and its part done again by another: the parts must bear that.

    Args:
        work: the task; takes ``part`` and ``order``.
        parts: of the batch.
        order: what is the same for all.
        settings: ``inference.workers`` processes on this machine, or the scheduler at ``inference.dask_scheduler``.
        advance: called with each part that is done.

    Returns:
        The results, in order.

    Raises:
        SettingsError: the extra ``cluster`` is not installed.
    """
    try:
        from prefect_dask.task_runners import DaskTaskRunner
    except ImportError as error:
        raise SettingsError(
            "Expected Prefect's Dask task runner for inference.workers > 1, it is not installed: pip install "
            "'microseg[cluster]', or set inference.workers to 1."
        ) from error
    inference = settings.params.inference
    runner: Any = (
        DaskTaskRunner(address=inference.dask_scheduler)
        if inference.dask_scheduler
        else DaskTaskRunner(cluster_kwargs={"n_workers": inference.workers, "threads_per_worker": 1})
    )

    with runner:
        futures = [runner.submit(work, {"part": part, "order": order}) for part in parts]
        results = []
        for part, future in zip(parts, futures, strict=True):
            results.append(future.result())
            advance(part)
    return results
