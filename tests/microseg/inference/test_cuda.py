"""What the engine does on CUDA, with a fake device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from microseg.errors import SettingsError
from microseg.inference.backends.pytorch import fold_batch_norm
from microseg.inference.engine import Engine
from tests.microseg.inference.test_engine import Local, noise, pyramid_network


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_rejects_compile_on_other_devices(device: str) -> None:
    message = f"Expected device cuda for inference.compile, got {device}: set inference.compile to false"
    with pytest.raises(SettingsError, match=message):
        Engine(pyramid_network(), device=device, compiled=True)


class Card:
    """Calls that a fake CUDA device received."""

    def __init__(self) -> None:
        self.compiled: list[dict[str, Any]] = []
        self.batches: list[int] = []  # sizes that the compiled network received
        self.pinned, self.sent = list[int](), list[tuple[int, bool]]()
        self.autocast: list[tuple[str, torch.dtype, bool]] = []


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    seen, to = Card(), torch.Tensor.to

    def compile_network(network: nn.Module, **options: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        seen.compiled.append(options)

        def run(x: torch.Tensor) -> torch.Tensor:
            seen.batches.append(len(x))
            return network(x)  # type: ignore[no-any-return]

        return run

    def pin(self: torch.Tensor) -> torch.Tensor:
        seen.pinned.append(len(self))
        return self

    def send(self: torch.Tensor, *where: Any, **options: Any) -> torch.Tensor:
        if where[:1] != (torch.device("cuda"),):
            return to(self, *where, **options)
        seen.sent.append((len(self), options["non_blocking"]))
        return self

    @contextmanager
    def autocast(kind: str, *, dtype: torch.dtype, enabled: bool) -> Iterator[None]:
        seen.autocast.append((kind, dtype, enabled))
        yield

    monkeypatch.setattr(torch, "compile", compile_network)
    monkeypatch.setattr(torch, "autocast", autocast)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", send)
    monkeypatch.setattr(nn.Module, "to", lambda self, **_: self)
    return seen


@pytest.mark.parametrize("compiled", [False, True])
def test_cuda_pins_batches_and_computes_in_half_precision(card: Card, compiled: bool) -> None:
    network, tiles = Local().eval(), [noise(64, 64, seed) for seed in range(5)]
    engine = Engine(network, device="cuda", tile=64, halo=0, batch=2, compiled=compiled)
    given = list(engine.predictions(tiles))
    assert card.pinned == [2, 2, 1]
    assert card.sent == [(2, True), (2, True), (1, True)]
    assert card.autocast == 3 * [("cuda", torch.float16, True)]
    assert card.compiled == ([{"dynamic": False}] if compiled else [])
    assert card.batches == ([2, 2] if compiled else [])  # the rest is not compiled
    expected = list(Engine(network, tile=64, halo=0).predictions(tiles))
    np.testing.assert_allclose(given, expected, atol=1e-5)


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
