"""What the threads of an image pipeline share: the images that are left, their results, and the memory for them."""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from microseg.outputs.batch_summary import ImageResult, ImageTask

__all__ = ["ImageQueue", "MemoryBudget"]


class MemoryBudget:
    """Memory for some images at once, or for one slide alone.

    Args:
        images: Number of images.

    Attributes:
        image: Semaphore to hold from before an image is read until it is written.
    """

    def __init__(self, images: int) -> None:
        self.image = threading.Semaphore(images)
        self._images, self._slide = images, threading.Lock()

    @contextmanager
    def slide(self) -> Iterator[None]:
        """Wait until no image is held, and reserve the whole budget for a slide."""
        with self._slide, ExitStack() as reserved:
            for _ in range(self._images):
                reserved.enter_context(self.image)
            yield


class ImageQueue:
    """Tasks that are left, and results in the order of the tasks.

    Args:
        tasks: The images of a batch.
    """

    def __init__(self, tasks: Sequence[ImageTask]) -> None:
        self._left = deque(enumerate(tasks))
        self._results: dict[int, ImageResult] = {}
        self._changed = threading.Condition()
        self._stopped = False
        self._error: BaseException | None = None

    def next(self) -> tuple[int, ImageTask] | None:
        """The next task with its number; None if none is left, or the queue was stopped."""
        with self._changed:
            return self._left.popleft() if self._left and not self._stopped else None

    def put_back(self, items: Sequence[tuple[int, ImageTask]]) -> None:
        """Hand these tasks out again, first."""
        with self._changed:
            self._left.extendleft(reversed(items))

    def stop(self, error: BaseException | None = None) -> None:
        """Hand out no more tasks; because of an error."""
        with self._changed:
            self._stopped, self._error = True, self._error or error
            self._changed.notify_all()

    def done(self, number: int, result: ImageResult) -> None:
        """Keep the result of a task until it is asked for."""
        with self._changed:
            self._results[number] = result
            self._changed.notify_all()

    def result(self, number: int) -> ImageResult:
        """Wait for a result. The error that the batch was stopped for is raised."""
        with self._changed:
            self._changed.wait_for(lambda: number in self._results or self._error is not None)
            if number not in self._results and self._error is not None:
                raise self._error
            return self._results.pop(number)
