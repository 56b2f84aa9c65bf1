"""Processes that read images and write their outputs, so that this is not limited by Python's lock.

A process does one thing at a time. It has one core's worth of work: the network computes in the process that started
it, which gets pixels and returns predictions through shared memory.
"""

import mmap
import os
import signal
import subprocess
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from microseg.cpu import tune_allocator
from microseg.errors import MicrosegError
from microseg.inference.image_files import ImageFiles, ReadImage, SlideFile
from microseg.inference.prediction import Prediction
from microseg.outputs.batch_summary import ImageResult, ImageTask
from microseg.outputs.image_summary import ConfidenceSums
from microseg.processes import IdleProcesses, anonymous_file, ending, sendable, start_python

__all__ = ["SLOTS", "RemoteImage", "WorkerLostError", "WorkerProcess", "borrow", "give_back", "serve"]

SLOTS = 3
"""Images that a process holds at once."""

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class WorkerLostError(MicrosegError):
    """A process ended before it answered."""


class RemoteImage(NamedTuple):
    """An image that a process has read.

    Attributes:
        scaled: RGB at the model's pixel size, (h, w, 3), in shared memory.
        size: Height and width of the result.
    """

    scaled: npt.NDArray[np.uint8]
    size: tuple[int, int]


class _SharedMemory:
    """Memory of two processes that grows; it is freed when both have closed it.

    Args:
        descriptor: Its file descriptor; None to create it.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = anonymous_file() if descriptor is None else descriptor
        self._map: mmap.mmap | None = None

    def array(self, shape: tuple[int, ...], dtype: Any = np.uint8, offset: int = 0) -> npt.NDArray[Any]:
        """An array in the memory, which grows as needed."""
        needed = offset + int(np.prod(shape)) * np.dtype(dtype).itemsize
        if self._map is None or len(self._map) < needed:
            if os.fstat(self.descriptor).st_size < needed:
                os.ftruncate(self.descriptor, -(-needed // mmap.PAGESIZE) * mmap.PAGESIZE)
            self._map = mmap.mmap(self.descriptor, os.fstat(self.descriptor).st_size)  # arrays keep the former one
        return np.ndarray(shape, dtype, buffer=self._map, offset=offset)

    def close(self) -> None:
        self._map = None
        os.close(self.descriptor)


class _Layout(NamedTuple):
    """Places in the memory of an image: its pixels, and behind them what the network says of it."""

    scaled: tuple[int, int]
    size: tuple[int, int]
    classes: int
    interior: bool
    probabilities: bool

    def pixels(self, memory: _SharedMemory) -> npt.NDArray[np.uint8]:
        return memory.array((*self.scaled, 3))

    def maps(self, memory: _SharedMemory) -> list[npt.NDArray[np.uint8]]:
        """Mask, confidence, and interior where there is one."""
        start, count = 3 * self.scaled[0] * self.scaled[1], 3 if self.interior else 2
        return list(memory.array((count, *self.size), offset=start))

    def floats(self, memory: _SharedMemory) -> npt.NDArray[np.float32] | None:
        """Probabilities, where they are needed."""
        if not self.probabilities:
            return None
        start = 3 * self.scaled[0] * self.scaled[1] + 3 * self.size[0] * self.size[1]
        return memory.array((self.classes, *self.size), np.float32, -(-start // 4) * 4)


class WorkerProcess:
    """A process that reads and writes images, with memory for `SLOTS` of them; its methods wait for it."""

    slots = SLOTS

    def __init__(self) -> None:
        self._memories = [_SharedMemory() for _ in range(SLOTS)]
        self._layouts: dict[int, _Layout] = {}
        self._pipe, end = Pipe()
        descriptors = [end.fileno(), *(memory.descriptor for memory in self._memories)]
        code = f"from microseg.inference.worker import serve; serve({descriptors})"
        with end:
            self._process = start_python(code, descriptors, _ONE_THREAD)

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def begin(self, files: ImageFiles) -> None:
        """Start a batch."""
        self._layouts.clear()
        self._call("begin", files)

    def read(self, task: ImageTask, slot: int) -> "RemoteImage | SlideFile | ImageResult":
        """See `ImageFiles.read`; an image is kept in a slot."""
        found = self._call("read", task, slot)
        if not isinstance(found, _Layout):
            return found  # type: ignore[no-any-return]
        self._layouts[slot] = found
        return RemoteImage(found.pixels(self._memories[slot]), found.size)

    def write(self, task: ImageTask, slot: int, prediction: Prediction, seconds: float | None) -> ImageResult:
        """See `ImageFiles.write`; the slot is free then."""
        layout, memory = self._layouts.pop(slot), self._memories[slot]
        given = [prediction.mask, prediction.confidence, prediction.interior]
        for place, values in zip(layout.maps(memory), given, strict=False):
            assert values is not None
            np.copyto(place, values)
        if (floats := layout.floats(memory)) is not None:
            assert prediction.probabilities is not None
            np.copyto(floats, prediction.probabilities)
        sums = prediction.sums
        del prediction, given
        result: ImageResult = self._call("write", task, slot, sums, seconds)
        return result

    def finish(self) -> None:
        """End the batch."""
        self._call("finish")

    def close(self) -> None:
        """End the process, after what it is doing."""
        self._pipe.close()
        self._process.wait()
        for memory in self._memories:
            memory.close()

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            self._pipe.send((method, arguments))
            kind, value = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise WorkerLostError(
                f"Expected an answer of the process that reads and writes images, it ended ({self._ending()})."
            ) from error
        if kind == "error":
            raise value
        return value

    def _ending(self) -> str:
        try:
            code = self._process.wait(1)
        except subprocess.TimeoutExpired:
            return "its pipe is closed"
        return ending(code)


_idle = IdleProcesses(WorkerProcess)


def borrow() -> WorkerProcess:
    """A process that is idle, or a new one; those that were killed while they were idle are forgotten."""
    return _idle.take()


def give_back(worker: WorkerProcess) -> None:
    """Keep a process for the next batch."""
    _idle.give_back(worker)


# ---- in the process


def serve(descriptors: list[int]) -> None:
    """Answer calls until the parent process ends or closes the pipe.

    Args:
        descriptors: File descriptors of the pipe and of the memory of each slot.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes the pipe
    tune_allocator()
    pipe: Connection[Any, Any] = Connection(descriptors[0])
    images = _Images([_SharedMemory(descriptor) for descriptor in descriptors[1:]])
    calls: dict[str, Callable[..., Any]] = {
        "begin": images.begin, "read": images.read, "write": images.write, "finish": images.finish
    }  # fmt: skip
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        try:
            reply = "done", calls[method](*arguments)
        except Exception as error:
            reply = "error", sendable(error)
        try:
            pipe.send(reply)
        except BrokenPipeError:
            return
        del reply, arguments


class _Images:
    """The images that the process holds."""

    def __init__(self, memories: list[_SharedMemory]) -> None:
        self._memories = memories
        self._files: ImageFiles | None = None
        self._held: dict[int, tuple[ReadImage, _Layout]] = {}

    def begin(self, files: ImageFiles) -> None:
        self._files = files
        self._held.clear()

    def read(self, task: ImageTask, slot: int) -> "_Layout | SlideFile | ImageResult":
        assert self._files is not None
        found = self._files.read(task)
        if not isinstance(found, ReadImage):
            return found
        height, width = found.scaled.shape[:2]
        needs = self._files.interior, self._files.needs_probabilities
        layout = _Layout((height, width), found.size, len(self._files.classes), *needs)
        np.copyto(layout.pixels(self._memories[slot]), found.scaled)
        self._held[slot] = found, layout
        return layout

    def write(self, task: ImageTask, slot: int, sums: ConfidenceSums, seconds: float | None) -> ImageResult:
        assert self._files is not None
        image, layout = self._held.pop(slot)
        mask, confidence, *interior = layout.maps(self._memories[slot])
        floats = layout.floats(self._memories[slot])
        prediction = Prediction(mask, confidence, interior[0] if interior else None, sums, floats)
        return self._files.write(task, image, prediction, seconds)

    def finish(self) -> None:
        if self._files is not None:
            self._files.save_hashes()
        self._files = None
        self._held.clear()
