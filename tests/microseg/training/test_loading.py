import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from microseg.errors import DataError, TrainingError
from microseg.training import loading
from microseg.training.loading import BatchLoader, available_cores, worker_count

SHARED = Path("/dev/shm")


class Drawn(NamedTuple):
    images: torch.Tensor
    part: dict[str, Any]
    nothing: None


def draw(step: int) -> Drawn:
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(256, (2, 5, 7, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    return Drawn(images, {"step": step, "number": torch.tensor(0.5 * step), "empty": torch.zeros(0, 3)}, None)


def loaded(first: int, last: int, workers: int, draw: Any = draw) -> list[Any]:
    loader = BatchLoader(draw, first, last, workers=workers, pin=False)
    try:
        return [next(loader) for _ in range(first, last)]
    finally:
        loader.close()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_are_those_of_their_steps_with_any_number_of_processes(workers: int) -> None:
    """In order, from any step, with the same types, values and memory order."""
    for step, got in enumerate(loaded(4, 11, workers), 4):
        expected = draw(step)
        assert type(got) is Drawn
        assert torch.equal(got.images, expected.images)
        assert got.images.stride() == expected.images.stride()
        assert got.images.is_contiguous(memory_format=torch.channels_last)
        assert (got.part["step"], got.nothing) == (step, None)
        assert got.part["number"] == 0.5 * step
        assert got.part["number"].ndim == 0
        assert got.part["empty"].shape == (0, 3)
        got.images[0] = 0  # its own memory


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs /dev/shm")
def test_nothing_is_put_into_shared_memory() -> None:
    """In a container it often has 64 MB: eight batches of this size."""
    before = set(SHARED.iterdir())
    large = loaded(0, 4, 2, lambda step: torch.full((8, 2**20), step, dtype=torch.uint8))
    assert [int(it[0, 0]) for it in large] == [0, 1, 2, 3]
    assert not {file for file in set(SHARED.iterdir()) - before if file.name.startswith("torch_")}


def fail(step: int, error: Exception) -> torch.Tensor:
    if step == 2:
        raise error
    return torch.tensor(step)


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_are_raised_at_their_step_as_they_are(workers: int) -> None:
    loader = BatchLoader(partial(fail, error=DataError("a.png: broken")), 0, 5, workers=workers, pin=False)
    assert [int(next(loader)) for _ in range(2)] == [0, 1]
    with pytest.raises(DataError, match=r"^a\.png: broken$"):
        next(loader)
    loader.close()


class OddError(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def test_errors_that_cannot_be_sent_are_raised_with_their_message() -> None:
    with pytest.raises(Exception, match="1 and 2"):
        loaded(0, 5, 1, partial(fail, error=OddError(1, 2)))


def test_a_killed_process_is_a_clear_error() -> None:
    loader = BatchLoader(partial(stop_at, step=3), 0, 100, workers=2, pin=False)
    start = time.monotonic()
    with pytest.raises(TrainingError, match=r"ended before step \d+ .*no memory left: set workers to a lower number"):
        list(map(lambda _: next(loader), range(100)))  # noqa: C417
    assert time.monotonic() - start < 60
    loader.close()


def stop_at(drawn: int, step: int) -> torch.Tensor:
    if drawn == step:
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.tensor(drawn)


def test_closing_ends_the_processes() -> None:
    loader = BatchLoader(lambda step: torch.tensor([step, os.getpid()]), 0, 1000, workers=2, pin=False)
    numbers = {int(next(loader)[1]) for _ in range(4)}
    assert len(numbers) == 2
    loader.close()
    for number in numbers:
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)


def test_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(loading, "available_cores", lambda: 6)
    assert worker_count("auto", device=cuda) == 6
    assert worker_count("auto", device=cuda, processes=2) == 3
    assert worker_count(0, device=cuda) == 0
    assert worker_count("auto", device=torch.device("cpu")) == 1
    assert worker_count("auto", device=torch.device("cpu"), processes=2) == 0
    assert worker_count(2, device=torch.device("cpu")) == 2
    assert worker_count(40, device=cuda) == 40
    monkeypatch.setattr(loading, "available_cores", lambda: 128)
    assert worker_count("auto", device=cuda) == 8
    assert worker_count("auto", device=cuda, processes=8) == 8


def test_cores_are_at_least_one() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


def test_arrays_need_no_more_than_their_bytes() -> None:
    packed = loading._Packed.of(draw(0))
    assert packed.content is not None
    assert len(packed.content) < 2 * 5 * 7 * 3 + 1500
    assert np.array_equal(packed.unpacked().images, draw(0).images)
