import threading
from collections.abc import Iterator

import pytest
import torch

from microseg.inference.backends.tile_executor import TileExecutor


@pytest.fixture(autouse=True)
def _four_threads(_one_thread: None) -> Iterator[None]:
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(("most", "count", "each"), [(1, 1, 4), (2, 2, 2), (3, 3, 1), (9, 4, 1)])
def test_threads_are_shared_out_and_nobody_elses_change(most: int, count: int, each: int) -> None:
    parallel_tiles = TileExecutor(most)
    assert parallel_tiles.count == count
    assert {parallel_tiles.submit(torch.get_num_threads).result() for _ in range(8)} == {each}
    later: list[int] = []
    other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert (torch.get_num_threads(), later) == (4, [4])


def test_lanes_run_beside_one_another() -> None:
    parallel_tiles, both = TileExecutor(2), threading.Barrier(2, timeout=10)
    assert {future.result() >= 0 for future in [parallel_tiles.submit(both.wait) for _ in range(2)]} == {True}
