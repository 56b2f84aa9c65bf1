"""Calls in other threads, some ahead of the one whose result is used."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

__all__ = ["Threads", "results_in_order"]

T = TypeVar("T")
R = TypeVar("R")


def results_in_order(start: Callable[[T], "Future[R]"], items: Iterable[T], ahead: int) -> Iterator[R]:
    """Results for all items, in order, while the next ones are computed.

    Args:
        start: Starts the computation for an item.
        items: Taken when they are started.
        ahead: Items that are started before the result of an earlier one is used; 0 for none.
    """
    running: deque[Future[R]] = deque()
    for item in items:
        running.append(start(item))
        del item  # it may be large
        if len(running) > ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


class Threads:
    """Some threads for pure functions that release Python's lock, or none. Close it, or use it in a ``with`` block.

    Args:
        count: Number of threads. With one, functions run in the calling thread, at once.

    Attributes:
        count: Number of threads.
        ahead: Calls that should be waiting or running at most, so that their results need little memory.
    """

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="outputs") if count > 1 else None
        self.ahead = 0 if self._pool is None else 2 * count

    def start(self, function: Callable[..., R], *args: Any) -> "Future[R]":
        """Call a function, which must not start others."""
        if self._pool is not None:
            return self._pool.submit(function, *args)
        future: Future[R] = Future()
        future.set_result(function(*args))
        return future

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Results for all items, in order; some are computed ahead."""
        return results_in_order(partial(self.start, function), items, self.ahead)

    def close(self) -> None:
        """End the threads; calls that have not begun are not made."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> "Threads":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
