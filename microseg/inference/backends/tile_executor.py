"""Lanes: threads beside one another, each of which computes with its share of PyTorch's threads."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import torch

__all__ = ["TileExecutor"]

P = ParamSpec("P")
T = TypeVar("T")


class TileExecutor:
    """Runs calls beside one another. Lanes start with the first call.

    PyTorch's threads wait for one another at the end of every operator. Where each lane computes something of its own
    with few threads, or one, they rarely wait, and a core that something else needs holds up one lane instead of all.

    Args:
        most: lanes, at most; there are never more than PyTorch has threads.

    Attributes:
        count: of the lanes.
    """

    def __init__(self, most: int) -> None:
        threads = torch.get_num_threads()
        self.count = max(1, min(most, threads))
        self._threads = threads // self.count
        self._pool: ThreadPoolExecutor | None = None
        self._starting = threading.Lock()

    def submit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a call in the next lane that is free."""
        with self._starting:
            if self._pool is None:
                self._pool = self._start()
        return self._pool.submit(call, *args, **kwargs)

    def _start(self) -> ThreadPoolExecutor:
        threads = torch.get_num_threads()
        pool = ThreadPoolExecutor(self.count, thread_name_prefix="lane")
        together = threading.Barrier(self.count)

        def begin() -> None:
            torch.get_num_threads()  # a thread takes over the common number when it first asks, once
            torch.set_num_threads(self._threads)  # of this lane; but also what threads that start later begin with
            together.wait()

        for started in [pool.submit(begin) for _ in range(self.count)]:
            started.result()
        torch.set_num_threads(threads)
        return pool
