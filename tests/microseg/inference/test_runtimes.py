"""The engine computed by OpenVINO, and what it would do on a graphics card."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from microseg.errors import ModelError, SettingsError
from microseg.inference import Engine, Provenance, fold_batch_norm, runtimes, segment_batch
from microseg.model import PyramidSegmenter
from tests.microseg.inference.test_engine import Local, noise, pyramid_network


@pytest.fixture
def openvino() -> Any:
    return pytest.importorskip("openvino", reason="pip install 'microseg[openvino]'")


@pytest.mark.parametrize("make", [Local, pyramid_network, partial(pyramid_network, "resnet18")])
def test_openvinos_answer_is_pytorchs(openvino: Any, make: Callable[[], PyramidSegmenter]) -> None:
    network = make().eval()
    reference, engine = (Engine(network, tile=256, halo=16, runtime=name) for name in ("torch", "openvino"))
    spread = []
    for size in [(300, 260), (1, 1), (5, 3), (1, 400), (128, 128), (70, 50)]:  # each of tiles of its own
        image = noise(*size)
        expected, given = reference.probabilities(image), engine.probabilities(image)
        assert (given.dtype, given.shape) == (np.float32, expected.shape)
        np.testing.assert_allclose(given, expected, atol=1e-5)  # ten times closer than runtimes.TOLERANCE
        spread.append(expected.std())
    assert max(spread) > 0.02
    batch = np.stack([noise(64, 96, seed) for seed in range(3)])
    np.testing.assert_allclose(engine.predict(batch), reference.predict(batch), atol=1e-5)


def test_tiles_beside_one_another_come_in_order(openvino: Any) -> None:
    network, tiles = Local().eval(), [noise(64, 64, seed) for seed in range(12)]
    torch.set_num_threads(3)
    engine = Engine(network, tile=64, halo=0, runtime="openvino")
    expected = [Engine(network, tile=64, halo=0).predict(tile[None])[0] for tile in tiles]
    np.testing.assert_allclose(list(engine.predictions(tiles)), expected, atol=1e-5)


def test_compiled_once_for_each_size_and_the_last_four_are_kept(openvino: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(Local().eval(), tile=96, halo=16, runtime="openvino")
    compiled: list[tuple[int, ...]] = []
    compile_model = openvino.Core.compile_model

    def watched(self: Any, model: Any, *rest: Any) -> Any:
        compiled.append(tuple(model.inputs[0].shape))
        return compile_model(self, model, *rest)

    monkeypatch.setattr(openvino.Core, "compile_model", watched)
    first, others = (10, 10), [(20, 10), (30, 10), (40, 10), (50, 10)]
    for size in [first, first, *others[:3], first, others[3], first, others[0]]:
        engine.probabilities(noise(*size))
    assert compiled == [(1, height, width, 3) for height, width in [first, *others, others[0]]]


def test_it_is_recorded_and_decides_what_is_done(
    openvino: Any,
    brightness: Callable[..., PyramidSegmenter],
    images: list[Path],
    provenance: Provenance,
    tmp_path: Path,
) -> None:
    reference, engine = (Engine(brightness(), tile=128, halo=16, runtime=name) for name in ("torch", "openvino"))
    assert engine.parameters == reference.parameters | {"runtime": "openvino"}
    done = [
        segment_batch(each, images, tmp_path / "out", provenance=provenance).done
        for each in (reference, engine, engine, reference)
    ]
    assert done == [5, 5, 0, 5]


def test_nothing_is_told_to_openvinos_makers(openvino: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own converter would, without having asked."""
    telemetry, told = pytest.importorskip("openvino_telemetry"), list[object]()
    monkeypatch.setattr(telemetry.Telemetry, "init", lambda *given, **_: told.append(given))
    monkeypatch.setattr(telemetry.Telemetry, "send_event", lambda *given, **_: told.append(given))
    Engine(pyramid_network(), runtime="openvino")
    assert told == []


def test_openvino_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(SettingsError, match=r"pip install 'microseg\[openvino\]', or set inference.runtime to torch"):
        Engine(pyramid_network(), runtime="openvino")


def test_an_answer_that_differs_is_refused(openvino: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "TOLERANCE", -1.0)
    with pytest.raises(ModelError, match=r"set inference.runtime to torch"):
        Engine(pyramid_network(), runtime="openvino")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "onnx"}, "Expected a runtime out of torch, openvino, got 'onnx'"),
        ({"runtime": "openvino", "device": "cuda"}, "Expected device cpu for inference.runtime openvino, got cuda"),
        ({"runtime": "openvino", "half": True}, "Expected 32 bits for runtime openvino"),
        ({"compiled": True}, "Expected device cuda for inference.compile, got cpu: set inference.compile to false"),
        ({"compiled": True, "device": "mps"}, "Expected device cuda for inference.compile, got mps"),
    ],
)
def test_what_does_not_go_together_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Engine(pyramid_network(), **options)


class Card:
    """What a graphics card that is not there was asked for."""

    def __init__(self) -> None:
        self.compiled: list[dict[str, Any]] = []
        self.batches: list[int] = []  # that the compiled network got
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
def test_on_a_card_batches_are_pinned_and_computed_in_16_bits(card: Card, compiled: bool) -> None:
    network, tiles = Local().eval(), [noise(64, 64, seed) for seed in range(5)]
    engine = Engine(network, device="cuda", tile=64, halo=0, batch=2, compiled=compiled)
    given = list(engine.predictions(tiles))
    assert card.pinned == [2, 2, 1]
    assert card.sent == [(2, True), (2, True), (1, True)]
    assert card.autocast == 3 * [("cuda", torch.float16, True)]
    assert card.compiled == ([{"dynamic": False}] if compiled else [])
    assert card.batches == ([2, 2] if compiled else [])  # what is left over is computed as without
    np.testing.assert_allclose(given, Engine(network, tile=64, halo=0).predict(np.stack(tiles)), atol=1e-5)


def test_pytorch_compiles_the_network_in_one_piece_once_for_a_size() -> None:
    """Its compiler's own kernels aside, which are made for the machine."""
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
