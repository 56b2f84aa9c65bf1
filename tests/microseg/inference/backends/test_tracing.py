import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from microseg.inference.backends import tracing as module
from microseg.inference.backends.tracing import TracedNetwork
from microseg.inference.engine import Engine
from microseg.models.config import NetworkConfig
from microseg.models.network import PyramidSegmenter


class Counting(nn.Module):
    """Counts how often it is run as a module, not as a graph."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.runs = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        logits: Tensor = self.inner(x)
        return logits


def small_network() -> PyramidSegmenter:
    torch.manual_seed(0)
    config = NetworkConfig(classes=("background", "gland"), encoder="blocks", channels=(8, 16), pyramid_channels=8)
    return PyramidSegmenter(config).eval()


@torch.inference_mode()
def test_a_size_met_often_is_computed_by_a_graph_to_the_same_result() -> None:
    counting = Counting(small_network()).eval()
    traced = TracedNetwork(counting)
    x = torch.rand(1, 3, 48, 64)
    results = [traced(x) for _ in range(40)]
    before = counting.runs
    assert before == module._OFTEN + 2  # and two to make the graph
    results.append(traced(x))
    assert counting.runs == before
    for result in results:
        torch.testing.assert_close(result, counting.inner(x))
    traced(torch.rand(1, 3, 64, 48))
    assert counting.runs == before + 1  # another size


@torch.inference_mode()
def test_what_cannot_be_traced_or_gives_something_else_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sums(nn.Module):  # gives something else each time
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * self.calls

    traced = TracedNetwork(Sums())
    x = torch.ones(1, 3, 8, 8)
    results = [float(traced(x).mean()) for _ in range(module._OFTEN + 3)]
    assert results[-1] > results[-2] > results[-3]

    def refuse(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(torch.jit, "trace", refuse)
    network = small_network()
    traced = TracedNetwork(network)
    for _ in range(module._OFTEN + 2):
        torch.testing.assert_close(traced(x.expand(1, 3, 8, 8)), network(x))


@torch.inference_mode()
def test_no_more_graphs_than_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_OFTEN", 2)
    traced = TracedNetwork(small_network())
    for side in range(8, 8 + 4 * 12, 4):
        for _ in range(3):
            traced(torch.rand(1, 3, side, 8))
    assert len(traced._graphs) == 8


def test_several_threads_and_an_engine_give_the_network_s_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_OFTEN", 4)
    network = small_network()
    tiles = np.random.default_rng(1).integers(0, 256, (24, 48, 48, 3), np.uint8)
    seen = np.stack(list(Engine(network, tile=48, halo=4).predictions(tiles)))
    with torch.inference_mode():
        expected = network(torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255).softmax(1)
    torch.testing.assert_close(torch.from_numpy(seen), expected, atol=1e-5, rtol=0)
    traced, together = TracedNetwork(network), threading.Barrier(4)

    def compute(_number: int) -> Tensor:
        together.wait()
        with torch.inference_mode():
            return torch.stack([traced(torch.full((1, 3, 32, 32), 0.5)) for _ in range(8)])

    with ThreadPoolExecutor(4) as pool:
        results = torch.stack(list(pool.map(compute, range(4))))
    torch.testing.assert_close(results, results[:1, :1].expand_as(results))
