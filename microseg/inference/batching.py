"""Batches for a device: tiles of one size wait together, whichever image they are of, and are computed together.

One thread forms the batches. It never waits for the result of the last one: two batches are on the device at any time,
and what comes in meanwhile is the next. Results are copied to the host on the side.
"""

import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from microseg.errors import ModelError
from microseg.inference.backends.backend import Backend
from microseg.inference.prediction import Prediction
from microseg.inference.reduction import HostCopy, classify, not_finite

__all__ = ["BatchQueue", "ImageRequest"]

_ON_DEVICE = 2  # batches
_WAITING_FOR_COPIES = 2  # threads

Pixels = npt.NDArray[np.uint8]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageRequest:
    """How an image that is one tile is reduced; only images with the same request share a batch.

    Attributes:
        shape: Rows and columns of the tile that are the image.
        size: Height and width of the result.
        classes: Number of classes.
        interior: Channel of the interior; None where objects are not separated.
        probabilities: Whether the result has those of all classes.
    """

    shape: tuple[int, int]
    size: tuple[int, int]
    classes: int
    interior: int | None
    probabilities: bool


@dataclass
class _Waiting:
    """Tiles by size and request, and when to stop."""

    tiles: dict[tuple[Any, ...], deque[tuple[Pixels, "Future[Any]"]]] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)
    stopped: bool = False

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()

    def wait(self) -> bool:
        """Wait for a tile; False after `stop`."""
        with self.changed:
            while not self.tiles and not self.stopped:
                self.changed.wait()
            return bool(self.tiles)

    def take(self, most: Callable[[tuple[int, ...]], int]) -> tuple[Any, list[tuple[Pixels, "Future[Any]"]]]:
        """Tiles of the size whose first has waited longest."""
        with self.changed:
            key = next(iter(self.tiles))
            tiles = self.tiles.pop(key)
            count = min(len(tiles), most(tiles[0][0].shape))
            count = 1 << (count.bit_length() - 1)  # a power of two: cuDNN needs seconds for each size that is new to it
            taken = [tiles.popleft() for _ in range(count)]
            if tiles:
                self.tiles[key] = tiles  # behind the others
            return key[1], taken


class BatchQueue:
    """Computes tiles in batches, in a thread of its own that ends with this object.

    Args:
        backend: The network on its device.
        pixels: Pixels of a batch. If the device has not enough memory for a batch, it is halved, as are later ones.
        half: Whether the network computes in 16 bits, for the message of an error.
    """

    def __init__(self, backend: Backend, pixels: int, half: bool) -> None:
        self._backend, self.pixels, self._half = backend, pixels, half
        self.device = backend.device
        self._waiting = _Waiting()
        self._copying = ThreadPoolExecutor(_WAITING_FOR_COPIES, thread_name_prefix="copies")
        self._started = threading.Lock()
        self._thread: threading.Thread | None = None
        weakref.finalize(self, self._waiting.stop)

    def tile(self, pixels: Pixels) -> "Future[torch.Tensor]":
        """Outputs of a tile on the device: (h, w, 3) → (K + M, h, w)."""
        return self._add(pixels, None)

    def image(self, pixels: Pixels, request: ImageRequest) -> "Future[Prediction]":
        """The prediction of an image that is one tile, on the host."""
        return self._add(pixels, request)

    def _add(self, pixels: Pixels, request: ImageRequest | None) -> "Future[Any]":
        future: Future[Any] = Future()
        with self._started:
            if self._thread is None:
                arguments = weakref.ref(self), self._waiting
                self._thread = threading.Thread(target=_run, args=arguments, name="batches", daemon=True)
                self._thread.start()
        with self._waiting.changed:
            self._waiting.tiles.setdefault((pixels.shape, request), deque()).append((pixels, future))
            self._waiting.changed.notify()
        return future

    def most(self, shape: tuple[int, ...]) -> int:
        """Tiles of a size in a batch."""
        return max(1, self.pixels // (shape[0] * shape[1]))

    def compute(self, request: ImageRequest | None, tiles: Sequence[tuple[Pixels, "Future[Any]"]]) -> None:
        """Start to compute a batch; its futures get their results or the error."""
        try:
            self._compute(request, tiles)
        except torch.OutOfMemoryError as error:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            height, width = tiles[0][0].shape[:2]
            if len(tiles) == 1:
                failed = ModelError(
                    f"Expected memory on the device for a tile of {height} x {width} pixels, got: {error}. Reduce "
                    "inference.tile_size, or free the device."
                )
                failed.__cause__ = error
                tiles[0][1].set_exception(failed)
                return
            half = len(tiles) // 2
            self.pixels = half * height * width
            _log.warning(
                "The device has not enough memory for a batch of %d tiles of %d x %d pixels: computing %d at once.",
                *(len(tiles), height, width, half),
            )
            for some in (tiles[:half], tiles[half:]):
                self.compute(request, some)
        except Exception as error:
            for _, future in tiles:
                future.set_exception(error)

    @torch.inference_mode()
    def _compute(self, request: ImageRequest | None, tiles: Sequence[tuple[Pixels, "Future[Any]"]]) -> None:
        outputs = self._backend.predict([pixels for pixels, _ in tiles])  # (B, K + M, h, w)
        if request is None:
            for (_, future), each in zip(tiles, outputs, strict=True):
                future.set_result(each)
            return
        outputs = outputs[:, :, : request.shape[0], : request.shape[1]]
        if request.size != request.shape:
            outputs = functional.interpolate(outputs, size=request.size, mode="bilinear", antialias=True)
        reduced = classify(outputs, request.classes, request.interior)
        probabilities = outputs[:, : request.classes] if request.probabilities else None
        copies = HostCopy([reduced.mask, reduced.confidence, reduced.interior, reduced.sums, probabilities])
        del outputs, probabilities

        def finish() -> None:
            try:
                mask, confidence, interior, sums, probabilities = copies.wait()
                assert mask is not None
                assert confidence is not None
                assert sums is not None
                for number, (_, future) in enumerate(tiles):
                    if not torch.isfinite(sums[number]).all():
                        future.set_exception(not_finite(self._half))
                        continue
                    prediction = Prediction(
                        mask[number].numpy(),
                        confidence[number].numpy(),
                        None if interior is None else interior[number].numpy(),
                        reduced.host_sums(number, sums),
                        None if probabilities is None else probabilities[number].numpy(),
                    )
                    future.set_result(prediction)
            except Exception as error:
                for _, future in tiles:
                    if not future.done():
                        future.set_exception(error)

        self._copying.submit(finish)


def _run(reference: "weakref.ref[BatchQueue]", waiting: _Waiting) -> None:
    """Form batches until the queue is gone."""
    running: deque[torch.cuda.Event] = deque()
    while waiting.wait() and (queue := reference()) is not None:
        if len(running) >= _ON_DEVICE:
            running.popleft().synchronize()
        request, tiles = waiting.take(queue.most)
        queue.compute(request, tiles)
        if queue.device.type == "cuda":
            running.append(torch.cuda.current_stream(queue.device).record_event())
        del queue, tiles
