"""Bounds on time and memory for libraries that read files of others, and on their log lines.

A damaged file, or one made to harm, can keep a library busy for ever, fill the memory or crash the process. So a
function that reads such a file is run in a child process, which is stopped at a limit; the next file gets a new one.
Child processes are reused while they are well, so a call costs a fraction of a millisecond and the copy of its result.
"""

import itertools
import logging
import os
import pickle
import resource
import signal
import subprocess
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, TypeVar

from microseg.cpu import return_memory, tune_allocator
from microseg.errors import ResourceLimitError
from microseg.processes import IdleProcesses, anonymous_file, ending, sendable, start_python

__all__ = ["MEMORY", "SECONDS", "bound_log", "run_limited"]

SECONDS = 10.0
"""Processor time of one file. It may wait six times as long for its share or disk, and for ever for the processor."""

MEMORY = 2 * 2**30
"""Memory of one file, in bytes."""

_WAIT = 6.0  # wall time over processor time
# threads reserve addresses, which count as memory
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TIFFFILE_NUM_THREADS"), "1")
_ONE_THREAD["MALLOC_ARENA_MAX"] = "2"
_KEPT = 2**28  # bytes that a child process may keep until the next call
_KEPT_REPLY = 2**25  # bytes of the largest reply whose memory is kept for the next one
_MOST_IDLE = max(8, 2 * (os.cpu_count() or 1))  # child processes that wait for the next call
_LOG_LINES, _LOG_SECONDS = 20, 60.0

T = TypeVar("T")


def run_limited(what: str, function: Callable[..., T], *args: Any, seconds: float = SECONDS, memory: int = MEMORY) -> T:
    """Call a function in a child process with bounds on its time and memory.

    In such a child process it is called at once: the bounds are those of the outer call.

    Args:
        what: What is read, such as the path of a file; begins the message of an error.
        function: A function of a module (no method, lambda or closure); it gets copies of its arguments.
        args: Its arguments; relative paths are relative to the current folder.
        seconds: Processor time; in whole seconds, rounded up.
        memory: Bytes beyond those of the idle process.

    Returns:
        A copy of what the function returned.

    Raises:
        ResourceLimitError: The function takes more time or memory, or crashes the process. Its own exceptions are
            raised again.
    """
    if _serving:
        return function(*args)
    child = _idle.take()
    try:
        kind, value = child.call(function, args, seconds, memory)
    except BaseException:
        child.close()
        raise
    if kind == "stopped":
        child.close()
        raise ResourceLimitError(
            f"{what}: expected to be read in {seconds:g} s and {memory / 2**30:.2g} GiB, {value}. The file is damaged "
            "or made to harm, or its disk or server is too slow; export it again, or in another format."
        )
    if kind == "error":
        _idle.give_back(child)
        for error, cause in itertools.pairwise([*value, None]):
            error.__cause__ = cause
        raise value[0]
    _idle.give_back(child)
    return value  # type: ignore[no-any-return]


class _Child:
    """A process that calls functions, one after the other."""

    def __init__(self) -> None:
        self._pipe, end = Pipe()
        self._memory = anonymous_file()
        self._free = weakref.finalize(self, os.close, self._memory)  # also in a fork, which has no use for it
        descriptors = [end.fileno(), self._memory]
        code = f"from microseg.limits import serve; serve(*{descriptors})"
        with end:
            self._process = start_python(code, descriptors, _ONE_THREAD, output=subprocess.DEVNULL)

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], seconds: float, memory: int) -> tuple[str, Any]:
        try:
            self._pipe.send((function, args, _current_folder(), seconds, memory))
            if not self._answers(_WAIT * seconds):
                return "stopped", f"it was not after {_WAIT * seconds:g} s"
            kind, value = _receive(self._pipe, self._memory)
        except (EOFError, OSError):  # the process ended
            self._process.wait()
            if self._process.returncode == -signal.SIGXCPU:
                return "stopped", "it took longer"
            return "stopped", f"the reading process crashed ({ending(self._process.returncode)})"
        return kind, value

    def _answers(self, most: float) -> bool:
        """Wait for the answer; time in which the process is ready to run, on a busy machine, does not count."""
        waited, step = 0.0, min(0.5, most)
        while waited < most:
            if self._pipe.poll(step):
                return True
            if not _is_runnable(self._process.pid):
                waited += step
        return False

    def close(self) -> None:
        """End the process at once."""
        self._pipe.close()
        self._process.kill()
        self._process.wait()
        self._free()

    def alive(self) -> bool:
        return self._process.poll() is None


def _is_runnable(pid: int) -> bool:
    """Whether a process waits for the processor only; what it computes is bounded by its processor time."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] == b"R"
    except OSError:  # no such system
        return False


def _current_folder() -> str | None:
    """The current folder; None if it was removed."""
    with suppress(FileNotFoundError):
        return str(Path.cwd())
    return None


_idle = IdleProcesses(_Child, _MOST_IDLE)


# ---- replies, whose arrays are sent as they are: pickled with the rest, each would be copied five times. They take one
# system call each, since a thread that others keep from Python's lock may wait milliseconds for it after every call


def _send(pipe: "Connection[Any, Any]", memory: int, reply: Any) -> None:
    buffers: list[memoryview] = []
    data = pickle.dumps(reply, 5, buffer_callback=lambda buffer: buffers.append(buffer.raw()))
    place = 0
    for buffer in buffers:
        left = buffer
        while len(left):
            count = os.pwrite(memory, left, place)
            place, left = place + count, left[count:]
    pipe.send((data, [len(buffer) for buffer in buffers]))


def _receive(pipe: "Connection[Any, Any]", memory: int) -> Any:
    import numpy as np  # here, as the service, which reads no images, starts without it

    data, lengths = pipe.recv()
    buffers, place = [], 0
    for length in lengths:
        buffers.append(np.empty(length, np.uint8))
        left = buffers[-1].data
        while len(left):
            count = os.preadv(memory, [left], place)
            if not count:
                raise EOFError
            place, left = place + count, left[count:]
    if place > _KEPT_REPLY:
        os.ftruncate(memory, 0)
    return pickle.loads(data, buffers=buffers)  # noqa: S301  # nosec B301 (of our own process)


# ---- in the child process

_serving = False


def serve(descriptor: int, memory: int) -> None:
    """Call functions until the parent process ends or closes the pipe.

    Args:
        descriptor: File descriptor of the pipe.
        memory: File descriptor of the memory for the arrays of replies.
    """
    global _serving
    _serving = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes the pipe
    logging.disable(logging.CRITICAL)
    tune_allocator()
    pipe: Connection[Any, Any] = Connection(descriptor)
    while True:
        try:
            function, args, folder, seconds, most = pipe.recv()
        except EOFError:
            return
        except Exception as error:  # the module of the function cannot be imported
            _send(pipe, memory, ("error", [sendable(error)]))
            continue
        _limit(seconds, most)
        try:
            if folder is not None:
                os.chdir(folder)
            reply = "done", function(*args)
        except MemoryError:
            reply = "stopped", "it took more memory"
        except Exception as error:
            reply = "error", [sendable(each) for each in _causes(error)]
        _limit(None, None)
        try:
            _send(pipe, memory, reply)
        except BrokenPipeError:
            return
        except Exception as error:  # the result cannot be sent
            _send(pipe, memory, ("error", [RuntimeError(f"{type(error).__name__}: {error}")]))
        del reply
        if _resident() > _KEPT:
            return_memory()


def _resident() -> int:
    """Memory of this process in bytes; 0 where the system does not state it."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else 0


def _limit(seconds: float | None, memory: int | None) -> None:
    """Set the limits of what follows; None for none."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1], resource.getrlimit(resource.RLIMIT_AS)[1]
    cpu, space = hard
    if seconds is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu = int(used.ru_utime + used.ru_stime + seconds) + 1
    statm = Path("/proc/self/statm")
    if memory is not None and statm.exists():
        space = int(statm.read_text().split()[0]) * resource.getpagesize() + memory
    for limit, value, most in ((resource.RLIMIT_CPU, cpu, hard[0]), (resource.RLIMIT_AS, space, hard[1])):
        resource.setrlimit(limit, (value if most == resource.RLIM_INFINITY else min(value, most), most))


def _causes(error: BaseException) -> list[BaseException]:
    """The exception and what caused it."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and len(chain) < 5:
        chain.append(cause)
        cause = cause.__cause__
    return chain


# ---- log lines


def bound_log(*names: str) -> None:
    """Let each of some loggers write 20 lines a minute; a library can report every fault of a damaged file.

    Args:
        names: Names of loggers.
    """
    for name in names:
        logger = logging.getLogger(name)
        if not any(isinstance(each, _LineLimit) for each in logger.filters):
            logger.addFilter(_LineLimit())


class _LineLimit(logging.Filter):
    """Passes the first lines of a minute."""

    def __init__(self) -> None:
        super().__init__()
        self._since, self._lines = 0.0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self._since > _LOG_SECONDS or not self._lines:
            self._since, self._lines = now, 0
        self._lines += 1
        if self._lines == _LOG_LINES:
            record.msg, record.args = f"{record.getMessage()} (further lines of this minute are left out)", ()
        return self._lines <= _LOG_LINES
