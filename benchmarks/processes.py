"""Processor time and memory of this process and its children, as the operating system counts them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

__all__ = ["cpu_seconds", "tree_memory"]


def cpu_seconds() -> float:
    """Processor time of this process and of its children, the running ones included."""
    times = psutil.Process().cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            own = child.cpu_times()
            total += own.user + own.system
    return float(total)


@contextmanager
def tree_memory() -> Iterator[list[float]]:
    """Watch the memory of this process and its children, in which shared pages count once.

    Yields:
        A list of one value, the largest memory so far in MB.
    """
    ended, peak = threading.Event(), [0.0]

    def watch() -> None:
        own = psutil.Process()
        while not ended.wait(0.1):
            total = 0
            for process in (own, *own.children(recursive=True)):
                with suppress(psutil.Error):
                    total += process.memory_full_info().pss
            peak[0] = max(peak[0], total / 1e6)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()
