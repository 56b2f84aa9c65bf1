"""The image pipeline: images are read, segmented and written at the same time, a few of them at any moment."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from microseg.cpu import available_cores
from microseg.inference.engine import Engine
from microseg.inference.image_files import (
    BatchOptions,
    ImageFiles,
    PixelSizes,
    ReadImage,
    SlideFile,
    failed,
)
from microseg.inference.image_queue import ImageQueue, MemoryBudget
from microseg.inference.prediction import Prediction
from microseg.inference.slide import segment_slide
from microseg.inference.worker import WorkerLostError, WorkerProcess, borrow, give_back
from microseg.models.reference_distribution import ReferenceDistribution
from microseg.outputs.batch_summary import ImageResult, ImageTask
from microseg.outputs.record import Provenance
from microseg.slides.pixel_size import StatedMpp

__all__ = ["BatchOptions", "ImagePipeline", "PixelSizes"]

_THREADS = 2  # that read and write in this process, at least
_IMAGES_OF_A_PROCESS = 8  # of a batch, below which it is not worth starting


class _Hand(Protocol):
    """Reads and writes images, one at a time; see `ImageFiles`."""

    slots: int

    def read(self, task: ImageTask, slot: int) -> "_Read | SlideFile | ImageResult": ...

    def write(self, task: ImageTask, slot: int, prediction: Prediction, seconds: float | None) -> ImageResult: ...


class _Read(Protocol):
    @property
    def scaled(self) -> npt.NDArray[np.uint8]: ...

    @property
    def size(self) -> tuple[int, int]: ...


class _Local:
    """Reads and writes in the calling thread."""

    slots = 2

    def __init__(self, files: ImageFiles) -> None:
        self._files = files
        self._held: dict[int, ReadImage] = {}

    def read(self, task: ImageTask, slot: int) -> "ReadImage | SlideFile | ImageResult":
        found = self._files.read(task)
        if isinstance(found, ReadImage):
            self._held[slot] = found
        return found

    def write(self, task: ImageTask, slot: int, prediction: Prediction, seconds: float | None) -> ImageResult:
        return self._files.write(task, self._held.pop(slot), prediction, seconds)


@dataclass
class _Ahead:
    """An image that was read and is being predicted."""

    number: int
    task: ImageTask
    slot: int
    prediction: "Future[Prediction]"
    started: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class ImagePipeline:
    """Segments images into files; the attributes are the arguments of `segment_images`."""

    engine: Engine
    out: Path
    provenance: Provenance
    options: BatchOptions
    reference: ReferenceDistribution | None = None

    def run(self, tasks: Sequence[ImageTask]) -> Iterator[ImageResult]:
        """Yield results in order. Closing the iterator early waits for files that are being written."""
        files = ImageFiles(
            self.out,
            self.provenance,
            self.options,
            self.reference,
            self.engine.classes,
            self.engine.separation(self.engine.mpp),
            self.engine.interior is not None,
            self.engine.mpp,
        )
        batch, processes = ImageQueue(tasks), self._processes(len(tasks))
        hands = processes or max(_THREADS, self.engine.parallel_tiles)
        budget = MemoryBudget(hands * (WorkerProcess.slots if processes else _Local.slots))
        with ThreadPoolExecutor(hands, thread_name_prefix="files") as pool:
            work = self._in_process if processes else self._in_thread
            for _ in range(hands):
                pool.submit(work, files, batch, budget)
            try:
                for number in range(len(tasks)):
                    yield batch.result(number)
            finally:
                batch.stop()
        if not processes:
            files.save_hashes()

    def _processes(self, images: int) -> int:
        if self.options.processes is not None:
            return self.options.processes
        if self.engine.device.type != "cuda":
            return 0
        return max(0, min(available_cores() - 2, images // _IMAGES_OF_A_PROCESS))

    def _in_thread(self, files: ImageFiles, batch: ImageQueue, budget: MemoryBudget) -> None:
        with suppress(BaseException):  # `ImageQueue.stop` has it
            self._work(_Local(files), files, batch, budget)

    def _in_process(self, files: ImageFiles, batch: ImageQueue, budget: MemoryBudget) -> None:
        """Work with a process, and with another one if it is lost."""
        while True:
            try:
                process = borrow()
            except BaseException as error:  # too many processes or open files
                batch.stop(error)
                return
            try:
                process.begin(files)
            except BaseException as error:
                process.close()
                batch.stop(error)
                return
            try:
                self._work(process, files, batch, budget)
                process.finish()
            except WorkerLostError:
                process.close()
                continue
            except BaseException:  # `ImageQueue.stop` has it
                process.close()
                return
            give_back(process)
            return

    def _work(self, hand: _Hand, files: ImageFiles, batch: ImageQueue, budget: MemoryBudget) -> None:
        """Read images, predict them together with those of others, and write them, until none is left.

        Raises:
            OSError: The outputs cannot be written.
            WorkerLostError: The image that the process was lost with has failed; others that it held are put back.
        """
        ahead: deque[_Ahead] = deque()
        free = list(range(hand.slots))
        item: tuple[int, ImageTask] | None = None
        slide: tuple[tuple[int, ImageTask], SlideFile] | None = None
        try:
            while True:
                # a thread that holds images must not wait for memory: a slide of another one may wait for them
                while slide is None and free and budget.image.acquire(blocking=not ahead):
                    item = batch.next()
                    if item is None:
                        budget.image.release()
                        break
                    source = self._start(hand, files, batch, budget, item, ahead, free)
                    slide = None if source is None else (item, source)
                if ahead:
                    one = ahead.popleft()
                    item = one.number, one.task
                    self._finish(hand, batch, budget, one)
                    free.append(one.slot)
                elif slide is not None:  # it needs the memory of all images
                    (number, task), source = slide
                    with budget.slide():
                        batch.done(number, self._segment_slide(task, source))
                    slide = None
                else:
                    return
        except WorkerLostError as error:
            assert item is not None
            batch.done(item[0], failed(item[1], error))
            left = [(one.number, one.task) for one in ahead if one.number != item[0]]
            batch.put_back([*left, *([slide[0]] if slide is not None else [])])
            for _ in ahead:
                budget.image.release()
            raise
        except BaseException as error:
            batch.stop(error)
            for one in ahead:  # what was predicted is kept
                with suppress(Exception):
                    self._finish(hand, batch, budget, one)
            raise

    def _start(
        self,
        hand: _Hand,
        files: ImageFiles,
        batch: ImageQueue,
        budget: MemoryBudget,
        item: tuple[int, ImageTask],
        ahead: deque[_Ahead],
        free: list[int],
    ) -> SlideFile | None:
        """Read an image and start to predict it, in memory that is reserved; a slide is returned."""
        number, task = item
        with ExitStack() as held:
            held.callback(budget.image.release)
            read = hand.read(task, free[-1])
            if isinstance(read, SlideFile):
                return read
            if isinstance(read, ImageResult):
                batch.done(number, read)
                return None
            try:
                prediction = self.engine.submit(read.scaled, read.size, probabilities=files.needs_probabilities)
            except Exception as error:
                batch.done(number, failed(task, error))
                return None
            ahead.append(_Ahead(number, task, free.pop(), prediction))
            held.pop_all()  # until it is written
        return None

    def _finish(self, hand: _Hand, batch: ImageQueue, budget: MemoryBudget, one: _Ahead) -> None:
        """Wait for the prediction of an image and write its outputs."""
        try:
            try:
                prediction = one.prediction.result()
            except Exception as error:
                batch.done(one.number, failed(one.task, error))
                return
            seconds = round(time.perf_counter() - one.started, 3)
            batch.done(one.number, hand.write(one.task, one.slot, prediction, seconds))
        finally:
            budget.image.release()

    def _segment_slide(self, task: ImageTask, source: SlideFile) -> ImageResult:
        """Segment a slide into files.

        Raises:
            OSError: The outputs cannot be written; a damaged slide raises `ImageReadError`, which fails alone.
        """
        try:
            record = segment_slide(
                self.engine,
                task.path,
                self.out,
                provenance=self.provenance,
                options=self.options,
                mpp=None if source.mpp is None else StatedMpp(source.mpp, "the batch", overrides=True),
                name=task.name,
                sha256=source.sha256,
                reference=self.reference,
            )
        except OSError:
            raise
        except Exception as error:
            return failed(task, error)
        return ImageResult(task, record)
