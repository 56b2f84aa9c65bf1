"""Training in several processes, told to the one that started it."""

import copy
import multiprocessing
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar

from lightning_fabric import Fabric

__all__ = ["Progress", "launch"]

ImageTask = TypeVar("ImageTask")
Result = TypeVar("Result")

Told = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Progress:
    """What the caller wants to be told.

    Attributes:
        on_step: after each step, its number from 1 and its losses.
        on_evaluation: after each evaluation, the number of the step and the figures.
    """

    on_step: Told = lambda _step, _losses: None
    on_evaluation: Told = lambda _step, _figures: None


def launch(
    fabric: Fabric, function: Callable[[Fabric, ImageTask, Progress], Result], job: ImageTask, progress: Progress
) -> Result:
    """Run a function here, or in as many processes as Fabric was made for.

    Args:
        fabric: device and processes.
        function: what each process runs; picklable where there are several.
        job: its input, likewise.
        progress: what the caller wants to be told; where there are several processes, the first one's news are brought
            back here.

    Returns:
        What the function returns, in the first process.
    """
    if fabric.strategy.launcher is None:
        fabric.launch()
        return function(fabric, job, progress)
    with multiprocessing.get_context("spawn").Manager() as manager:
        news = manager.Queue()
        told = threading.Thread(target=_tell, args=(news, progress), daemon=True)
        told.start()
        try:
            relay = Progress(partial(_put, news, "on_step"), partial(_put, news, "on_evaluation"))
            first: Result = fabric.launch(partial(_in_process, function, job, relay)).result
            return first
        finally:
            news.put(None)
            told.join()


def _in_process(
    function: Callable[[Fabric, ImageTask, Progress], Result], job: ImageTask, relay: Progress, fabric: Fabric
) -> SimpleNamespace:
    own = copy.deepcopy(job)  # the tensors that came with it lie in memory that all processes share
    # Fabric looks through what comes back for tensors, and stumbles over frozen records; into this it does not look
    return SimpleNamespace(result=function(fabric, own, relay if fabric.is_global_zero else Progress()))


def _put(news: Any, kind: str, step: int, figures: Mapping[str, float]) -> None:
    news.put((kind, step, dict(figures)))


def _tell(news: Any, progress: Progress) -> None:
    while (item := news.get()) is not None:
        kind, step, figures = item
        getattr(progress, kind)(step, figures)
