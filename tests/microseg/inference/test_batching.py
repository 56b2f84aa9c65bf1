"""Batches of tiles of several images: the code of CUDA, on a CPU."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from microseg.errors import ModelError
from microseg.inference.engine import Engine
from tests.microseg.inference.test_engine import Local, noise, pyramid_network

Tiles = Sequence[npt.NDArray[np.uint8]]


class Watched:
    """A backend whose first call waits, that counts tiles, and that has memory for some of them."""

    def __init__(self, engine: Engine, most: int = 100) -> None:
        self.backend, self.most, self.calls, self.go = engine._backend, most, list[int](), threading.Event()
        self.device, self.parallel_tiles, self.call_size = torch.device("cpu"), 1, engine._backend.call_size
        assert engine._queue is not None
        engine._queue._backend = self

    def predict(self, tiles: Tiles) -> torch.Tensor:
        self.go.wait(10)
        self.calls.append(len(tiles))
        if len(tiles) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.cat([self.backend.predict([tile]) for tile in tiles])

    def submit(self, tiles: Tiles) -> "Future[torch.Tensor]":
        raise AssertionError("the queue computes in its own thread")


@pytest.mark.parametrize("zoomed", [False, True])
def test_images_of_one_size_share_batches_and_get_the_same_results(zoomed: bool) -> None:
    network, images = pyramid_network(), [noise(50, 70, seed) for seed in range(9)]
    engine = Engine(network, tile=96, halo=16, batch=3, shared_batches=True)
    watched = Watched(engine)
    size = (100, 140) if zoomed else None
    futures = [engine.submit(image, size, probabilities=True) for image in images]
    watched.go.set()
    predictions = [future.result() for future in futures]
    assert sum(watched.calls) == 9
    assert max(watched.calls) == 4  # a power of two, of the 7 that have the pixels of three tiles
    for image, prediction in zip(images, predictions, strict=True):
        expected = Engine(network, tile=96, halo=16).submit(image, size, probabilities=True).result()
        assert prediction.probabilities is not None
        assert expected.probabilities is not None
        np.testing.assert_allclose(prediction.probabilities, expected.probabilities, atol=1e-5)
        assert prediction.mask.shape == (size or (50, 70))
        np.testing.assert_array_equal(prediction.mask, prediction.probabilities.argmax(0))
        np.testing.assert_allclose(prediction.confidence / 255, prediction.probabilities.max(0), atol=0.5 / 255 + 1e-6)
        entropy = -(prediction.probabilities * np.log(prediction.probabilities)).sum()
        assert prediction.sums.entropy == pytest.approx(float(entropy), rel=1e-4)
        assert prediction.sums.highest == pytest.approx(float(prediction.probabilities.max(0).sum()), rel=1e-5)
        assert prediction.sums.pixels == prediction.mask.size


def test_images_of_several_tiles_and_sizes_are_predicted_together() -> None:
    network, images = Local().eval(), [noise(50, 70), noise(200, 150), noise(30, 30), noise(150, 300), noise(50, 70)]
    engine, plain = Engine(network, tile=96, halo=16, batch=3, shared_batches=True), Engine(network, tile=96, halo=16)
    for image, future in [(image, engine.submit(image)) for image in images]:
        prediction, expected = future.result(), plain.submit(image).result()
        np.testing.assert_array_equal(prediction.mask, expected.mask)
        np.testing.assert_allclose(prediction.confidence, expected.confidence.astype(int), atol=1)
        np.testing.assert_allclose(engine.probabilities(image), plain.probabilities(image), atol=1e-5)


def test_batch_that_does_not_fit_the_memory_is_halved(caplog: pytest.LogCaptureFixture) -> None:
    network, images = pyramid_network(), [noise(64, 64, seed) for seed in range(8)]
    plain = Engine(network, tile=128, halo=16)
    engine = Engine(network, tile=128, halo=16, batch=2, shared_batches=True)
    watched = Watched(engine, most=3)
    futures = [engine.submit(image) for image in images]
    watched.go.set()
    for image, future in zip(images, futures, strict=True):
        np.testing.assert_array_equal(future.result().mask, plain.submit(image).result().mask)
    assert engine._queue is not None
    assert engine._queue.most((64, 64)) <= 3  # later batches are small at once
    assert "has not enough memory for a batch" in caplog.text


def test_tile_that_does_not_fit_the_memory_is_an_error_of_its_image_only() -> None:
    engine = Engine(pyramid_network(), tile=128, halo=16, shared_batches=True)
    watched = Watched(engine, most=0)
    watched.go.set()
    with pytest.raises(ModelError, match=r"Expected memory on the device for a tile of 64 x 64 pixels"):
        engine.submit(noise(64, 64)).result()
    watched.most = 9
    assert engine.submit(noise(64, 64)).result().mask.shape == (64, 64)


def test_outputs_that_are_not_finite_are_an_error_of_their_image_only() -> None:
    network = Local().eval()
    engine = Engine(network, tile=128, halo=16, shared_batches=True)
    watched = Watched(engine)
    predict = watched.predict

    def broken(tiles: Tiles) -> torch.Tensor:
        outputs = predict(tiles)
        for number, tile in enumerate(tiles):
            if np.array_equal(tile, noise(64, 64, 1)):
                outputs[number, 0, 3, 3] = float("nan")
        return outputs

    watched.predict = broken  # type: ignore[method-assign]
    futures: list[Future[Any]] = [engine.submit(noise(64, 64, seed)) for seed in range(3)]
    watched.go.set()
    for number in (0, 2):
        assert futures[number].result().mask.shape == (64, 64)
    with pytest.raises(ModelError, match="NaN or infinity"):
        futures[1].result()


def test_thread_ends_with_the_engine() -> None:
    engine = Engine(Local().eval(), tile=128, halo=16, shared_batches=True)
    engine.submit(noise(64, 64)).result()
    assert engine._queue is not None
    thread = engine._queue._thread
    assert thread is not None
    del engine
    thread.join(10)
    assert not thread.is_alive()
