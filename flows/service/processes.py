"""Child processes of a service, which end with it, also when it is killed.

Each child is the first process of its own process group, so that Ctrl-C reaches the service only, and so that all that
a child started can be ended. `flows.service.guard` ends them if the service is killed. If the guard is killed too, they
are found in a file by the next start.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from flows.service import guard
from microseg.config.environment import Home
from microseg.errors import MicrosegError, SettingsError
from microseg.files import write_text_file
from microseg.locks import try_lock
from microseg.parsing import parse_json

__all__ = [
    "READY_VARIABLE",
    "Child",
    "Children",
    "exclusive",
    "notify_systemd",
    "report_ready",
]

READY_VARIABLE = "MICROSEG_READY_FD"
"""Environment variable with the number of the pipe on which a child reports that it is ready."""

_LOG_LINES = 15


@dataclass
class Child:
    """A child process.

    Attributes:
        name: Its name, for messages.
        process: The process.
        log: File of its output; None where it writes to the output of this process.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path | None
    _ready_fd: int | None = None
    _ready: bool = False

    @property
    def ready(self) -> bool:
        """Whether it has reported that it is ready; see `report_ready`."""
        if not self._ready and self._ready_fd is not None:
            with suppress(BlockingIOError):
                self._ready = os.read(self._ready_fd, 1) != b""
        return self._ready

    def check(self) -> None:
        """Raise `MicrosegError` if the process has ended."""
        if (code := self.process.poll()) is None:
            return
        message = f"{self.name} ended with exit code {code}."
        if self.log is not None:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
            output = "\n".join(f"  {line}" for line in lines) or "  (nothing)"
            message += f" Its last output, from {self.log}:\n{output}"
        raise MicrosegError(message)


class Children:
    """The child processes of a service.

    Args:
        record: File that states which processes run, for the next start.
    """

    def __init__(self, record: Path) -> None:
        self._record = record
        self._children: list[Child] = []
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, str(guard.STOP_SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        self._write_record()

    def start(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        log: Path | None = None,
    ) -> Child:
        """Start ``python -m`` with arguments.

        Args:
            name: Name of the process, for messages.
            arguments: Module and its arguments.
            environment: Variables to add to those of this process.
            folder: Current folder of the process.
            log: File for its output; the output of this process by default.
        """
        readable, writable = os.pipe()
        os.set_blocking(readable, False)
        output = None
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            output = log.open("wb")
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **(environment or {}), READY_VARIABLE: str(writable)},
            pass_fds=(writable,),
            start_new_session=True,
        )
        os.close(writable)
        if output is not None:
            output.close()
        child = Child(name, process, log, readable)
        self._children.append(child)
        self._tell_guard("+", process.pid)
        self._write_record()
        return child

    def check(self) -> None:
        """Raise `MicrosegError` if a process has ended."""
        for child in self._children:
            child.check()

    def remove(self, child: Child) -> None:
        """End what an ended process has left running, and forget it."""
        self._signal(child, signal.SIGKILL)
        child.process.wait()
        if child._ready_fd is not None:
            os.close(child._ready_fd)
        self._children.remove(child)
        self._tell_guard("-", child.process.pid)
        self._write_record()

    def stop_one(self, child: Child, seconds: float) -> None:
        """End one process; see `stop`."""
        with suppress(ProcessLookupError):
            child.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.process.wait(seconds)
        self.remove(child)

    def stop(self, seconds: float) -> None:
        """End all processes: SIGTERM to each of them, and SIGKILL to all that they have started.

        Args:
            seconds: Time between the two.
        """
        for child in self._children:
            with suppress(ProcessLookupError):
                child.process.terminate()
        end = time.monotonic() + seconds
        for child in self._children:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, end - time.monotonic()))
        for child in list(self._children):
            self.remove(child)

    def close(self) -> None:
        """End the guard; all processes have ended."""
        assert self._guard.stdin is not None
        with suppress(OSError):
            self._guard.stdin.close()
        self._guard.wait()
        self._record.unlink(missing_ok=True)

    def _signal(self, child: Child, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):  # macOS reports a zombie as not permitted
            os.killpg(child.process.pid, number)

    def _tell_guard(self, sign: str, pid: int) -> None:
        assert self._guard.stdin is not None
        with suppress(OSError):  # it was killed: the record remains
            self._guard.stdin.write(f"{sign}{pid}\n".encode())
            self._guard.stdin.flush()

    def _write_record(self) -> None:
        pids = [os.getpid(), *(child.process.pid for child in self._children)]
        entries = []
        for pid in pids:
            with suppress(psutil.NoSuchProcess):
                entries.append({"pid": pid, "created": psutil.Process(pid).create_time()})
        write_text_file(self._record, json.dumps(entries) + "\n")


@contextmanager
def exclusive(home: Home, service: str) -> Iterator[Path]:
    """Allow one service of a kind for a home and machine; end what remains of one that was killed.

    Args:
        home: The home.
        service: Its command, such as ``serve``.

    Yields:
        The file in which `Children` records its processes.

    Raises:
        SettingsError: It runs already.
    """
    record = home.records / "service" / f"{service.split()[-1]}-{socket.gethostname()}.json"
    with try_lock(record.with_suffix(".lock")) as held:
        entries = _read_record(record)
        if not held:
            who = f"process {entries[0]['pid']}" if entries else "another process"
            raise SettingsError(
                f"Expected no running `microseg {service}` of the home {home.root}, but {who} is one. Stop it first: "
                f"kill {entries[0]['pid'] if entries else '<process>'}."
            )
        _end_remaining(entries[1:])
        yield record


def _read_record(record: Path) -> list[dict[str, float]]:
    """The processes of a record; none where it is damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        entries = parse_json(record.read_bytes())
        return [{"pid": int(entry["pid"]), "created": float(entry["created"])} for entry in entries]
    return []


def _end_remaining(entries: Sequence[Mapping[str, float]]) -> None:
    """End the process groups of a service that was killed together with its guard."""
    created = {entry["pid"]: entry["created"] for entry in entries}
    groups = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            group = os.getpgid(process.pid)
            first = created.get(group)
            # the first process of the group is that of the record, or has ended; then no other can have its number
            if first is not None and (process.pid != group or abs(process.create_time() - first) < 1):
                groups.add(group)
    guard.end_groups(sorted(groups, reverse=True), guard.STOP_SECONDS)


def report_ready() -> None:
    """Report to the service that this child process is ready; nothing where there is none."""
    if number := os.environ.pop(READY_VARIABLE, None):
        with suppress(OSError):
            os.write(int(number), b"1")
            os.close(int(number))


def notify_systemd(state: str) -> None:
    """Report a state to systemd, as ``sd_notify`` does; nothing where it did not start this process.

    Args:
        state: ``READY=1`` or ``STOPPING=1``.
    """
    if address := os.environ.get("NOTIFY_SOCKET"):
        address = f"\0{address[1:]}" if address.startswith("@") else address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(state.encode(), address)
