"""Without TorchScript or oneDNN's private operator, the engine computes the same with plain PyTorch."""

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from microseg.inference.backends import cpu
from microseg.inference.backends.backend import create_backend
from microseg.inference.backends.cpu import CpuBackend
from microseg.inference.backends.pytorch import PyTorchBackend
from microseg.inference.engine import Engine
from microseg.models.network import PyramidSegmenter

OPTIONS = {"device": torch.device("cpu"), "batch_size": 2, "half": False, "compiled": False}
TILES = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)


def test_cpu_uses_the_cpu_backend(tiny_network: Callable[..., PyramidSegmenter]) -> None:
    backend = create_backend(tiny_network(), **OPTIONS)  # type: ignore[arg-type]
    assert isinstance(backend, CpuBackend)
    plain = PyTorchBackend(tiny_network().eval(), device=torch.device("cpu"), batch_size=2, half=False)
    np.testing.assert_allclose(backend.submit(TILES).result(), plain.predict(TILES), atol=1e-5)
    np.testing.assert_array_equal(plain.submit(TILES).result(), plain.predict(TILES))


def test_missing_operator_leaves_convolutions_unfused(
    tiny_network: Callable[..., PyramidSegmenter], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = create_backend(tiny_network(), **OPTIONS).submit(TILES).result()  # type: ignore[arg-type]
    cpu._operator.cache_clear()
    monkeypatch.delattr(torch.jit, "script")
    monkeypatch.delattr(torch.jit, "trace")
    backend = create_backend(tiny_network(), **OPTIONS)  # type: ignore[arg-type]
    assert not any(isinstance(part, cpu._FusedConv2d) for part in backend._network._network.modules())  # type: ignore[attr-defined]
    monkeypatch.setattr(cpu, "_TRACE_AFTER", 1)
    np.testing.assert_allclose(backend.submit(TILES).result(), expected, atol=1e-5)


def test_engine_works_without_the_cpu_backend(
    tiny_network: Callable[..., PyramidSegmenter], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`tests/flows/test_start.py` imports the package without it."""
    monkeypatch.setitem(sys.modules, "microseg.inference.backends.cpu", None)  # importing it raises ImportError
    engine = Engine(tiny_network(), tile=64, halo=8, batch=2)
    assert isinstance(engine._backend, PyTorchBackend)
    assert engine.probabilities(np.full((80, 100, 3), 90, np.uint8)).sum() == pytest.approx(80 * 100, rel=1e-4)
    assert "using plain PyTorch" in caplog.text
