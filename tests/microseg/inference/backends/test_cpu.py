import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from microseg.inference.backends import cpu
from microseg.inference.backends.cpu import TileExecutor, TracedNetwork, fuse_convolutions
from microseg.inference.backends.pytorch import fold_batch_norm
from microseg.inference.engine import Engine
from microseg.models.config import NetworkConfig
from microseg.models.network import PyramidSegmenter


def count_layers(network: nn.Module) -> tuple[int, int]:
    """Number of fused convolutions, and of activations that are not fused."""
    fused = [part for part in network.modules() if isinstance(part, cpu._FusedConv2d)]
    inside = {part for one in fused for part in one.plain.modules()}
    left = [part for part in network.modules() if isinstance(part, nn.ReLU | nn.Hardtanh) and part not in inside]
    return len(fused), len(left)


@pytest.mark.parametrize("encoder", ["blocks", "resnet18", "tf_efficientnet_lite0"])
@torch.no_grad()
def test_fused_and_traced_networks_give_the_same_logits(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = NetworkConfig(classes=("background", "gland"), encoder=encoder, channels=(8, 16), pyramid_channels=16)
    network = fold_batch_norm(PyramidSegmenter(config).eval(), torch.rand(1, 3, 64, 64))
    fused = fuse_convolutions(network, torch.rand(1, 3, 64, 64))
    convolutions = sum(isinstance(part, nn.Conv2d) for part in network.modules())
    after_sums = 8 if encoder == "resnet18" else 0  # its blocks end with the activation of a sum
    assert count_layers(fused) == (convolutions, after_sums)
    x = torch.rand(2, 3, 96, 64)
    torch.testing.assert_close(fused(x), network(x))
    monkeypatch.setattr("microseg.inference.backends.cpu._TRACE_AFTER", 1)
    traced = TracedNetwork(fused)
    results = [traced(x), traced(x)]
    assert isinstance(traced._graphs[x.shape], torch.jit.ScriptModule)
    for result in results:
        torch.testing.assert_close(result, network(x))


@pytest.mark.parametrize("side", [3, 5, 7])
@pytest.mark.parametrize("size", [(8, 12), (9, 12), (8, 11), (7, 9)])
@torch.no_grad()
def test_fuses_tensorflow_padding(side: int, size: tuple[int, int]) -> None:
    network = nn.Sequential(Conv2dSame(3, 6, side, stride=2, groups=3), nn.ReLU6(inplace=True), nn.Conv2d(6, 4, 1))
    fused = fuse_convolutions(network, torch.rand(1, 3, 16, 16))
    assert count_layers(fused) == (2, 0)
    x = 20 * torch.rand(2, 3, *size)
    torch.testing.assert_close(fused(x), network(x))


@torch.no_grad()
def test_fuses_bounds_strides_and_groups_but_not_reflection_padding() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3, stride=2, padding=(0, 1), bias=False)
            self.bounded = nn.Hardtanh(-0.25, 0.125)
            self.second = nn.Conv2d(4, 4, (1, 3), dilation=2, groups=2)
            self.mirrored = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
            self.last = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.last(self.mirrored(self.second(self.bounded(self.first(x)))))
            return result

    network = Twice().eval()
    fused = fuse_convolutions(network, torch.rand(1, 3, 16, 16))
    assert count_layers(fused) == (2, 1)  # oneDNN does not pad by reflection
    x = torch.randn(1, 3, 15, 18)
    torch.testing.assert_close(fused(x), network(x))


@torch.no_grad()
def test_does_not_fuse_if_the_output_would_change() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.activation = nn.Conv2d(3, 4, 3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y = self.convolution(x)
            result: Tensor = y - self.activation(y)
            return result

    network = Beside().eval()
    same = fuse_convolutions(network, torch.rand(1, 3, 16, 16))
    assert count_layers(same) == (0, 1)
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(same(x), network(x))


def test_fuses_nothing_without_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(cpu, "_operator", refuse)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    assert fuse_convolutions(network, torch.rand(1, 3, 16, 16)) is network


class Counting(nn.Module):
    """Counts how often it runs as a module, not as a graph."""

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
def test_traces_frequent_size_with_the_same_result() -> None:
    counting = Counting(small_network()).eval()
    traced = TracedNetwork(counting)
    x = torch.rand(1, 3, 48, 64)
    results = [traced(x) for _ in range(40)]
    before = counting.runs
    assert before == cpu._TRACE_AFTER + 2  # and two to make the graph
    results.append(traced(x))
    assert counting.runs == before
    for result in results:
        torch.testing.assert_close(result, counting.inner(x))
    traced(torch.rand(1, 3, 64, 48))
    assert counting.runs == before + 1  # another size


@torch.inference_mode()
def test_does_not_use_graph_that_fails_or_gives_other_results(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sums(nn.Module):  # another result at each call
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * self.calls

    traced = TracedNetwork(Sums())
    x = torch.ones(1, 3, 8, 8)
    results = [float(traced(x).mean()) for _ in range(cpu._TRACE_AFTER + 3)]
    assert results[-1] > results[-2] > results[-3]

    def refuse(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(torch.jit, "trace", refuse)
    network = small_network()
    traced = TracedNetwork(network)
    for _ in range(cpu._TRACE_AFTER + 2):
        torch.testing.assert_close(traced(x.expand(1, 3, 8, 8)), network(x))


@torch.inference_mode()
def test_makes_at_most_eight_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_TRACE_AFTER", 2)
    traced = TracedNetwork(small_network())
    for side in range(8, 8 + 4 * 12, 4):
        for _ in range(3):
            traced(torch.rand(1, 3, side, 8))
    assert len(traced._graphs) == 8


def test_parallel_threads_give_the_logits_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_TRACE_AFTER", 4)
    network = small_network()
    tiles = np.random.default_rng(1).integers(0, 256, (24, 48, 48, 3), np.uint8)
    seen = torch.stack(list(Engine(network, tile=48, halo=4).tile_outputs(tiles))).numpy()
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


@pytest.fixture
def _four_threads(_one_thread: None) -> Iterator[None]:
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("_four_threads")
@pytest.mark.parametrize(("most", "count", "each"), [(1, 1, 4), (2, 2, 2), (3, 3, 1), (9, 4, 1)])
def test_distributes_threads_and_changes_no_other_thread(most: int, count: int, each: int) -> None:
    executor = TileExecutor(most)
    assert executor.count == count
    assert {executor.submit(torch.get_num_threads).result() for _ in range(8)} == {each}
    later: list[int] = []
    other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert (torch.get_num_threads(), later) == (4, [4])


@pytest.mark.usefixtures("_four_threads")
def test_calls_run_in_parallel() -> None:
    executor, both = TileExecutor(2), threading.Barrier(2, timeout=120)
    assert {future.result() >= 0 for future in [executor.submit(both.wait) for _ in range(2)]} == {True}
