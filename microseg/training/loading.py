"""Batches, drawn by other processes ahead of the training.

A batch is a pure function of its step, so that it does not matter which process draws it: the sequence is the same with
any number of processes, and after a resumption. Batches come through pipes, not through shared memory, of which
containers have little.
"""

import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch.utils.data import DataLoader, Dataset

from microseg.errors import TrainingError

__all__ = ["BatchLoader", "available_cores", "worker_count"]

_AHEAD = 3  # batches that each process draws ahead
_MOST = 8  # processes by default; more were never of use


class BatchLoader:
    """The batches of consecutive steps.

    Args:
        draw: Draws the batch of a step; in other processes, as it is when the loader is made.
        first: Number of the first step.
        last: Number of the step after the last one.
        workers: Processes that draw; 0 for this one.
        pin: Put tensors into page-locked memory, from which a GPU copies while the training goes on.
    """

    def __init__(self, draw: Callable[[int], Any], first: int, last: int, *, workers: int, pin: bool) -> None:
        self.draw, self.step, self.pin = draw, first, pin
        self._batches: Iterator[_Packed] | None = None
        if workers == 0:
            return
        loader = DataLoader(
            _Steps(draw),
            batch_size=None,
            sampler=range(first, last),
            num_workers=min(workers, last - first),
            collate_fn=_same,  # type: ignore[arg-type]  # what it is given, without batches, is one item
            prefetch_factor=_AHEAD,
            pin_memory=pin,
            multiprocessing_context="fork",
        )
        try:
            self._batches = iter(loader)
        except (OSError, ValueError) as error:
            raise TrainingError(
                f"Expected to start {workers} processes that draw batches, but the system refuses: {error}. Set "
                "workers to 0, or allow the processes (their queues need a writable /dev/shm, of any size)."
            ) from error

    def __next__(self) -> Any:
        """Batch of the next step, on the CPU.

        Raises:
            TrainingError: A process that draws batches ended.
        """
        step, self.step = self.step, self.step + 1
        if self._batches is None:
            batch = self.draw(step)
            return apply_to_collection(batch, torch.Tensor, torch.Tensor.pin_memory) if self.pin else batch
        try:
            packed = next(self._batches)
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error) and "Pin memory thread" not in str(error):
                raise
            reason = str(error).partition("\n")[0]
            raise TrainingError(
                f"A process that draws batches ended before step {step + 1} ({reason}). If it was killed, the machine "
                "or the container most likely had no memory left: set workers to a lower number, or to 0 for none; "
                "the training then goes on from its checkpoint."
            ) from error
        return packed.unpacked()

    def close(self) -> None:
        """End the processes."""
        batches, self._batches = self._batches, None
        if batches is not None:
            batches._shutdown_workers()  # type: ignore[attr-defined]  # otherwise only when it is collected as garbage


def worker_count(workers: int | Literal["auto"], *, device: torch.device, processes: int = 1) -> int:
    """Number of processes that draw batches.

    Args:
        workers: The setting; ``auto`` for one on each core that is available, at most 8, where a GPU computes. Where
            the CPU computes, it needs the cores itself: one from four cores on, none below.
        device: Device of the training.
        processes: Processes of the training on this machine, which share its cores.
    """
    if workers != "auto":
        return workers
    if not sys.platform.startswith("linux") or multiprocessing.current_process().daemon:
        return 0  # forks are not safe elsewhere, and not allowed to such a process
    cores = available_cores() // processes
    return int(cores >= 4) if device.type == "cpu" else min(_MOST, cores)


def available_cores() -> int:
    """Cores that this process may use, by its affinity and the limit of its container, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # there is no limit
        return max(1, cores)


class _Packed:
    """A batch or an error, as bytes."""

    def __init__(self, content: bytes) -> None:
        self.content: bytes | None = content
        self.value: Any = None

    @classmethod
    def of(cls, value: Any) -> "_Packed":
        return cls(pickle.dumps(apply_to_collection(value, torch.Tensor, _Array), pickle.HIGHEST_PROTOCOL))

    def pin_memory(self) -> "_Packed":
        """Unpack into page-locked memory; called in a thread of the loader."""
        assert self.content is not None
        values = pickle.loads(self.content)  # noqa: S301  # nosec B301 (of a process of this one)
        self.content, self.value = None, apply_to_collection(values, _Array, lambda it: it.tensor().pin_memory())
        return self

    def unpacked(self) -> Any:
        if self.content is not None:
            values = pickle.loads(self.content)  # noqa: S301  # nosec B301 (of a process of this one)
            self.value = apply_to_collection(values, _Array, _Array.tensor)
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value


class _Array:
    """A tensor as an array, which is pickled with its content; its axes in the order of the memory."""

    def __init__(self, tensor: torch.Tensor) -> None:
        strides = tensor.stride()
        order = sorted(range(tensor.ndim), key=lambda axis: (-strides[axis], axis))
        self.array = tensor.permute(order).contiguous().numpy()
        self.axes = [order.index(axis) for axis in range(tensor.ndim)]

    def tensor(self) -> torch.Tensor:
        return torch.from_numpy(self.array).permute(self.axes)


class _Steps(Dataset[_Packed]):
    def __init__(self, draw: Callable[[int], Any]) -> None:
        self.draw = draw

    def __getitem__(self, step: int) -> _Packed:
        try:
            return _Packed.of(self.draw(step))
        except Exception as error:
            try:  # as it is, not with the traceback in its message
                packed = _Packed.of(error)
                pickle.loads(packed.content or b"")  # noqa: S301  # nosec B301 (made one line above)
            except Exception:
                raise error from None
            return packed


def _same(batch: _Packed) -> _Packed:
    return batch
