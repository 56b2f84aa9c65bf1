"""What only shows the work, such as an artifact in Prefect: where it cannot be written, the work goes on without it."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec

from prefect import get_run_logger

from flows.cli.console import console

__all__ = ["attempt", "report", "step"]

P = ParamSpec("P")

_MIN_PAUSE, _MAX_PAUSE = 20.0, 600.0  # seconds without attempts after one has failed
_PAUSE_RATIO = 10  # of the pause to the time that the attempt took: an absent server costs at most a tenth of the time

_log = logging.getLogger(__name__)
_paused: dict[str, float] = {}  # until when, by function


def attempt(write: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> Any:
    """Call a function that shows the work. If it fails, there is a warning, and it is not called again for some time.

    Args:
        write: Such as `create_markdown_artifact`.
        args: Its arguments.
        kwargs: Its arguments.

    Returns:
        Its result; None if it failed, or was not tried.
    """
    name, start = getattr(write, "__name__", "it"), time.monotonic()
    if start < _paused.get(name, 0.0):
        return None
    try:
        return write(*args, **kwargs)
    except Exception as error:  # whatever goes wrong at a server must not end the work
        now = time.monotonic()
        _paused[name] = now + min(_MAX_PAUSE, max(_MIN_PAUSE, _PAUSE_RATIO * (now - start)))
        _log.warning("Failed to %s; the work goes on. %s: %s", name.replace("_", " "), type(error).__name__, error)
        return None


@contextmanager
def step(title: str) -> Iterator[None]:
    """Log the begin of a step of a flow run, and its end with the time that it took.

    Args:
        title: What it does, such as ``"Adapt version 2 to lab_c"``.
    """
    log, start = get_run_logger(), time.monotonic()
    log.info("%s …", title)
    try:
        yield
    except BaseException as error:
        log.info("%s: ended after %s by %s", title, _duration(time.monotonic() - start), type(error).__name__)
        raise
    log.info("%s: done in %s", title, _duration(time.monotonic() - start))


def report(message: str) -> None:
    """Print a message, and log it with the flow run: what a run waits for, for example."""
    console.print(message, markup=False)
    get_run_logger().info("%s", message)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
