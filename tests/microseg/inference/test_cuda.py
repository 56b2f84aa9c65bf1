"""What of the engine on CUDA can be tested without it; see also test_batching and tests/gpu."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from microseg.errors import SettingsError
from microseg.inference.backends.pytorch import fold_batch_norm, half_copy
from microseg.inference.engine import Engine
from tests.microseg.inference.test_engine import pyramid_network


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_rejects_compile_on_other_devices(device: str) -> None:
    message = f"Expected device cuda for inference.compile, got {device}: set inference.compile to false"
    with pytest.raises(SettingsError, match=message):
        Engine(pyramid_network(), device=device, compiled=True)


def test_network_compiles_to_one_graph_per_size() -> None:
    """Without the compiler's kernels, which depend on the machine."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _example: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    network = fold_batch_norm(pyramid_network(), torch.rand(1, 3, 64, 64)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fast = torch.compile(network, backend=backend, dynamic=False, fullgraph=True)
    with torch.inference_mode():
        for _ in range(3):
            tiles = torch.rand(2, 64, 64, 3).permute(0, 3, 1, 2)
            torch.testing.assert_close(fast(tiles), network(tiles))
    assert len(graphs) == 1


@torch.inference_mode()
def test_weights_are_stored_in_16_bits(caplog: pytest.LogCaptureFixture) -> None:
    network, x = pyramid_network(), torch.rand(1, 3, 64, 64)
    half = half_copy(network)
    assert {weights.dtype for weights in half.parameters()} == {torch.float16}
    assert (half.mean.dtype, half.std.dtype) == (torch.float32, torch.float32)
    assert {weights.dtype for weights in network.parameters()} == {torch.float32}
    probabilities = network.head.outputs(network(x))
    torch.testing.assert_close(half.head.outputs(half(x).float()), probabilities, atol=0.005, rtol=0)
    last = network.head.classify
    assert isinstance(last, torch.nn.Conv2d)
    last.weight.mul_(1e6)  # beyond the range of float16
    assert {weights.dtype for weights in half_copy(network).parameters()} != {torch.float16}
    assert "in torch.float16" in caplog.text
