"""Child processes that are kept for the next call: start, reuse, shared memory, and how one ended."""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

__all__ = ["IdleProcesses", "anonymous_file", "ending", "sendable", "start_python"]


class _Process(Protocol):
    def alive(self) -> bool: ...

    def close(self) -> None: ...


P = TypeVar("P", bound=_Process)


class IdleProcesses(Generic[P]):
    """Processes that wait for the next call; a fork of this process has none of them.

    Args:
        create: Starts one.
        most: Number that is kept; None for all.
    """

    def __init__(self, create: Callable[[], P], most: int | None = None) -> None:
        self._create, self._most = create, most
        self._idle: list[P] = []
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._forget)

    def __len__(self) -> int:
        return len(self._idle)

    def take(self) -> P:
        """A process that is idle, or a new one; those that were killed while they were idle are forgotten."""
        while True:
            with self._lock:
                process = self._idle.pop() if self._idle else None
            if process is None:
                return self._create()
            if process.alive():
                return process
            process.close()

    def give_back(self, process: P) -> None:
        """Keep a process for the next call, or end it where enough are kept."""
        with self._lock:
            if self._most is None or len(self._idle) < self._most:
                self._idle.append(process)
                return
        process.close()

    def _forget(self) -> None:
        self._idle.clear()
        self._lock = threading.Lock()  # another thread may have held it at the fork


def start_python(
    code: str, descriptors: Sequence[int], environment: Mapping[str, str], *, output: int | None = None
) -> "subprocess.Popen[bytes]":
    """Start a process of this interpreter, with its search path, that executes code.

    Args:
        code: The code.
        descriptors: File descriptors that it gets.
        environment: Variables that it gets beside those of this process.
        output: Where its output and errors go; None to those of this process.
    """
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        pass_fds=descriptors,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env={**os.environ, "PYTHONPATH": paths, **environment},
    )


def anonymous_file() -> int:
    """Descriptor of a file in memory, to share large content with a child process; freed when both have closed it."""
    if hasattr(os, "memfd_create"):  # not limited as /dev/shm is in containers
        return os.memfd_create("microseg", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def ending(code: int) -> str:
    """How a process ended, by its exit status: the name of a signal, or the status."""
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"exit status {code}"


def sendable(error: BaseException) -> BaseException:
    """An exception, or one with its text that can be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  # nosec B301 (what was pickled here)
    except Exception:
        kind = OSError if isinstance(error, OSError) else RuntimeError
        return kind(f"{type(error).__name__}: {error}")
    return error
