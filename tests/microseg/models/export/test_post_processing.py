"""Exported networks with an instance head, and the code that ships with them, number the objects of the engine."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml

from microseg.annotations.index_masks import IGNORE
from microseg.inference.engine import Engine
from microseg.models import separation
from microseg.models.export.formats import FORMATS, export_model
from microseg.models.export.post_processing import POST_PROCESSING_FILE
from microseg.models.network import PyramidSegmenter
from tests.microseg.models.export.test_formats import RUN, as_input

TILE = 64


@pytest.fixture
def network(tiny_network: Callable[..., PyramidSegmenter]) -> PyramidSegmenter:
    network = tiny_network(classes=("background", "cell", "other"), instances=("cell",), smallest_instance=12.0)
    with torch.no_grad():  # so that there are objects
        network.head.classify.bias[1] += 0.5  # type: ignore[union-attr, index, operator]
        network.head.interior_logit.weight.mul_(4)  # type: ignore[union-attr, operator]
    return network


@pytest.mark.parametrize("kind", FORMATS)
def test_shipped_code_numbers_the_objects_of_the_engine(network: PyramidSegmenter, tmp_path: Path, kind: str) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    tiles = np.random.default_rng(5).integers(0, 256, (2, TILE, TILE, 3), np.uint8)
    tiles[:, 8:40, 8:30] //= 4
    made = export_model(network, tmp_path / f"model{FORMATS[kind]}", kind=kind, tile=TILE, halo=4)
    if kind == "bioimageio":
        with zipfile.ZipFile(made.path) as archive:
            code = archive.read(POST_PROCESSING_FILE).decode()
            described = yaml.safe_load(archive.read("rdf.yaml"))
        channels = described["outputs"][0]["axes"][1]["channel_names"]
        assert channels == ["background", "cell", "other", "interior"]
    else:
        code = (tmp_path / f"{made.path.name}.{POST_PROCESSING_FILE}").read_text()
    assert "microseg" not in "".join(line for line in code.splitlines() if "import" in line and "#" not in line)
    shipped: dict[str, Any] = {"__name__": "shipped"}
    exec(compile(code, "shipped", "exec", dont_inherit=True), shipped)
    engine, outputs = Engine(network), RUN[kind](made.path, as_input(tiles))
    for tile, given in zip(map(torch.Tensor.numpy, engine.tile_outputs(tiles)), outputs, strict=True):
        expected: npt.NDArray[np.int32] = engine.label_objects(tile)
        assert expected.max() > 0
        np.testing.assert_allclose(given, tile, atol=1e-4)
        np.testing.assert_array_equal(shipped["number_objects"](given), expected)


def test_semantic_networks_ship_without_code(tiny_network: Callable[..., PyramidSegmenter], tmp_path: Path) -> None:
    export_model(tiny_network(), tmp_path / "a.pt", kind="torchscript", tile=TILE)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_shipped_code_ignores_what_index_masks_ignore() -> None:
    assert separation._IGNORE == IGNORE
