"""Measurements on a device: time, share of the time in which it is busy, memory; and where their values are stored."""

import contextlib
import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import ResultRows

__all__ = ["BusyShare", "Results", "Setup", "busy_in_profile", "peak_memory", "repeat", "timed"]

_EVERY = 0.05  # seconds between two readings of the driver's utilization
_SETTLE = 0.3  # seconds at the start that are not read: the driver states the mean of up to a sixth of a second before


@dataclass(frozen=True)
class Setup:
    """What a section measures with.

    Attributes:
        device: ``cuda`` or ``cpu``.
        quick: Small sizes, which show that the section works, not how fast it is.
        folder: Folder of the generated data, shared by all sections.
        seconds: Time of the section.
    """

    device: torch.device
    quick: bool
    folder: Path
    seconds: float

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize()


@dataclass
class Results:
    """Values of a section, written as they are measured.

    Attributes:
        stored: File of the rows.
    """

    stored: ResultRows
    started: float = field(default_factory=time.perf_counter)

    def add(self, name: str, value: float | Sequence[float], unit: str, note: str = "", **more: Any) -> None:
        """Add a value, or repeated measurements of one.

        Args:
            name: Name of the value.
            value: One value, or all repetitions.
            unit: Unit.
            note: How it was measured, where the name does not say it.
            **more: Further fields of the row, such as ``wanted``.
        """
        values = [float(one) for one in value] if isinstance(value, Sequence) else [float(value)]
        row = {"name": name, "value": statistics.median(values), "unit": unit, "values": values, "note": note, **more}
        self.stored.add(row | {"at": round(time.perf_counter() - self.started, 2)})

    def skip(self, name: str, reason: str) -> None:
        """Add the name of a value that was not measured, and the reason."""
        self.stored.add({"name": name, "value": None, "unit": "", "values": [], "note": f"skipped: {reason}"})

    def __getitem__(self, name: str) -> float:
        """Median of a value measured before."""
        return float(next(row["value"] for row in self.stored.rows if row["name"] == name and row["value"] is not None))


def timed(task: Callable[[], object], setup: Setup) -> float:
    """Seconds of a task, with all that it has the device do."""
    setup.synchronize()
    began = time.perf_counter()
    task()
    setup.synchronize()
    return time.perf_counter() - began


def repeat(task: Callable[[], object], setup: Setup, *, seconds: float, least: int = 3, most: int = 20) -> list[float]:
    """Seconds of each repetition, after one that is not counted.

    Args:
        task: The task.
        setup: Device.
        seconds: Time for all repetitions.
        least: Least number of repetitions, though they take longer.
        most: Largest number.
    """
    measured = [timed(task, setup)]
    while len(measured) <= least or (sum(measured) < seconds and len(measured) <= most):
        measured.append(timed(task, setup))
    return measured[1:]


class BusyShare:
    """Share of the time in which the GPU computes, as its driver states it; a context manager.

    It is the time in which any kernel runs, however small: a busy GPU is not a fully used one. The driver states means
    of a sixth of a second to a second, so a measurement should last two seconds or more.

    Attributes:
        share: 0..1; None where it cannot be read, or the time was too short.
    """

    def __init__(self, setup: Setup) -> None:
        self.share: float | None = None
        self._read = _utilization(setup)
        self._ended = threading.Event()
        self._values: list[float] = []
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        assert self._read is not None
        self._ended.wait(_SETTLE)
        while not self._ended.wait(_EVERY):
            self._values.append(self._read())

    def __enter__(self) -> "BusyShare":
        """Start to read."""
        if self._read is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop reading."""
        self._ended.set()
        if self._read is not None:
            self._thread.join()
        if len(self._values) >= 10:
            self.share = statistics.mean(self._values) / 100


def _utilization(setup: Setup) -> Callable[[], float] | None:
    if not setup.on_gpu:
        return None
    try:
        torch.cuda.utilization()
    except Exception:  # without the driver's Python package, or where the driver does not state it
        return None
    return torch.cuda.utilization


def busy_in_profile(task: Callable[[], object], setup: Setup) -> float | None:
    """Share of a task's time in which a kernel or a copy runs, from PyTorch's profiler, which slows the host down a
    little. None where the profiler does not see the device.
    """
    if not setup.on_gpu:
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        seconds = timed(task, setup)
    on_device = (event for event in profiled.events() if str(event.device_type).endswith("CUDA"))
    spans = sorted((event.time_range.start, event.time_range.end) for event in on_device)  # microseconds
    busy, until = 0.0, 0.0
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy / 1e6 / seconds if spans else None


@contextlib.contextmanager
def peak_memory(setup: Setup) -> Iterator[dict[str, float]]:
    """Peak memory of a block in megabytes: ``device``, reserved by PyTorch, and ``process``, of the process so far."""
    found: dict[str, float] = {}
    if setup.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    yield found
    if setup.on_gpu:
        found["device"] = torch.cuda.max_memory_reserved() / 1e6
    found["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # kilobytes on Linux
