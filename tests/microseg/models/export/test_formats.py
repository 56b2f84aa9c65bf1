"""Exported files, run by the programs they are for, compute the probabilities of the engine."""

import itertools
import json
import shutil
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml

from microseg.errors import ModelError, NoSpaceError, SettingsError
from microseg.inference.engine import Engine
from microseg.models.export import formats
from microseg.models.export.formats import FORMATS, export_model
from microseg.models.network import PyramidSegmenter

TILE = 32


@pytest.fixture
def network(tiny_network: Callable[..., PyramidSegmenter]) -> PyramidSegmenter:
    return tiny_network(classes=("background", "gland", "other tissue"), mpp=0.5)


@pytest.fixture
def tiles() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (3, TILE, TILE, 3), np.uint8)


def as_input(tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(tiles.transpose(0, 3, 1, 2), np.float32) / np.float32(255)


def run_torchscript(path: Path, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    with torch.inference_mode():
        return np.asarray(torch.jit.load(str(path))(torch.from_numpy(x)).numpy())  # type: ignore[no-untyped-call]


def run_pt2(path: Path, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    with torch.inference_mode():
        return np.asarray(torch.export.load(path).module()(torch.from_numpy(x)).numpy())


def run_onnx(path: Path, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [given.name for given in session.get_inputs()] == ["image"]
    return np.asarray(session.run(["probabilities"], {"image": x})[0])


def run_bioimageio(path: Path, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    with zipfile.ZipFile(path) as archive:
        archive.extract("weights.torchscript.pt", path.parent)
    return run_torchscript(path.parent / "weights.torchscript.pt", x)


RUN = {"torchscript": run_torchscript, "pt2": run_pt2, "onnx": run_onnx, "bioimageio": run_bioimageio}


@pytest.mark.parametrize("kind", FORMATS)
def test_exported_file_computes_the_probabilities_of_the_engine(
    network: PyramidSegmenter, tiles: npt.NDArray[np.uint8], tmp_path: Path, kind: str
) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    made = export_model(network, tmp_path / f"model{FORMATS[kind]}", kind=kind, tile=TILE, halo=4)
    assert (made.format, made.tile) == (kind, TILE)
    assert made.difference < 1e-4
    expected = torch.stack(list(Engine(network).tile_outputs(tiles))).numpy()
    given = RUN[kind](made.path, as_input(tiles))
    assert given.dtype == np.float32
    np.testing.assert_allclose(given, expected, atol=1e-4)
    assert expected.std() > 0.01


def test_package_describes_the_model(network: PyramidSegmenter, tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    export_model(network, path, kind="bioimageio", tile=TILE, halo=4, name="m 3", description="# Card\nµ", version="3")
    with zipfile.ZipFile(path) as archive:
        described = yaml.safe_load(archive.read("rdf.yaml"))
        assert "# Card\nµ" in archive.read("README.md").decode()
        weights = archive.read("weights.torchscript.pt")
        example = np.load(archive.open("test_input.npy"))
        expected = np.load(archive.open("test_output.npy"))
    assert (described["name"], described["version"]) == ("m 3", "3")
    assert described["weights"]["torchscript"]["sha256"] == sha256(weights).hexdigest()
    assert described["inputs"][0]["axes"][2] == {
        "type": "space",
        "id": "y",
        "size": TILE,
        "scale": 0.5,
        "unit": "micrometer",
    }
    assert described["outputs"][0]["axes"][1]["channel_names"] == ["background", "gland", "other_tissue"]
    assert described["outputs"][0]["axes"][3]["halo"] == 4
    assert (example.min() >= 0, 1 < example.max() <= 255) == (True, True)
    x = torch.from_numpy(example) / 255
    with torch.inference_mode():
        np.testing.assert_allclose(network.eval()(x).softmax(1).numpy(), expected, atol=1e-5)


def test_package_passes_the_official_test(network: PyramidSegmenter, tmp_path: Path) -> None:
    core = pytest.importorskip("bioimageio.core", reason="pip install 'microseg[bioimageio]'")
    path = tmp_path / "model.zip"
    export_model(network, path, kind="bioimageio", tile=TILE, halo=4)
    summary: Any = core.test_model(path)
    assert summary.status == "passed", json.dumps(summary.model_dump(mode="json"), indent=1)[:3000]


@pytest.mark.parametrize("tile", [30, 0, 4])
def test_rejects_tile_that_is_no_multiple_of_the_stride(network: PyramidSegmenter, tmp_path: Path, tile: int) -> None:
    with pytest.raises(SettingsError, match="multiple of the network's stride 4"):
        export_model(network, tmp_path / "m.pt", kind="torchscript", tile=tile)


def test_rejects_unknown_format(network: PyramidSegmenter, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="bioimageio, onnx, torchscript, pt2"):
        export_model(network, tmp_path / "m.h5", kind="keras", tile=TILE)


def test_does_not_keep_file_that_computes_other_probabilities(
    network: PyramidSegmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = formats._torchscript

    def wrong(*given: Any) -> Callable[..., Any]:
        run = right(*given)
        return lambda tiles: run(tiles) + np.float32(0.01)

    monkeypatch.setattr(formats, "_torchscript", wrong)
    with pytest.raises(ModelError, match=r"differ by 0\.01"):
        export_model(network, tmp_path / "m.pt", kind="torchscript", tile=TILE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["torchscript", "pt2"])
@pytest.mark.parametrize("full_at", [1, 2])
def test_a_full_disk_is_an_error_and_leaves_nothing(
    network: PyramidSegmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, full_at: int
) -> None:
    usage, calls = shutil.disk_usage(tmp_path), itertools.count(1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=9 if next(calls) >= full_at else 2**40))
    with pytest.raises(NoSpaceError, match=r"it needs .* bytes, 9 are free"):
        export_model(network, tmp_path / "m.pt", kind=kind, tile=TILE)
    assert list(tmp_path.iterdir()) == []
