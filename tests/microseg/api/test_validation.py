"""Validation of registered versions."""

import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from microseg.api.validation import validate_version
from microseg.models.config import CONFIG_FILE, WEIGHTS_FILE
from microseg.models.files import load_network, save_network
from microseg.models.network import PyramidSegmenter
from microseg.registry.decision import MET, NOT_MET, RuleResult
from microseg.registry.registry import Registry
from microseg.registry.version import MODEL_NAME
from tests.shared import write_without_graph


@pytest.fixture
def registry(
    tmp_path: Path,
    empty_registry: Path,
    tiny_network: Callable[..., PyramidSegmenter],
    monkeypatch: pytest.MonkeyPatch,
) -> Registry:
    monkeypatch.setattr("microseg.registry.serving.write_mlflow_model", write_without_graph)
    shutil.copy(empty_registry, tmp_path / "mlflow.db")
    registry = Registry(f"sqlite:///{tmp_path / 'mlflow.db'}")
    save_network(tmp_path / "network", tiny_network())
    with registry.runs.start("train") as run:
        example = np.zeros((32, 32, 3), np.uint8)
        registry.versions.register(
            run, tmp_path / "network", example=example, method="supervised", description="A card."
        )
    return registry


def test_validation(registry: Registry, tmp_path: Path) -> None:
    """A valid version, one of other software, broken weights, NaN weights: in one test, as a database takes seconds."""
    cache = tmp_path / "cache"

    def validate(number: int, copy: Path | None = None) -> dict[str, RuleResult]:
        results = validate_version(
            registry.versions.find(number),
            lambda version: load_network(copy or registry.versions.download(version, cache)),
        )
        return {result.rule: result for result in results}

    assert {name: result.outcome for name, result in validate(1).items()} == dict.fromkeys(
        ("network", "test image"), MET
    )

    (tmp_path / "else").mkdir()
    client = mlflow.MlflowClient(tracking_uri=registry.tracking_uri, registry_uri=registry.tracking_uri)
    client.create_model_version(MODEL_NAME, source=(tmp_path / "else").as_uri())
    foreign = validate(2)
    assert foreign["network"].outcome == NOT_MET
    assert "was it registered by microseg?" in foreign["network"].message

    folder = registry.versions.download(1, cache)
    spare = tmp_path / "spare"
    shutil.copytree(folder, spare)
    torch.save({"weights": torch.zeros(1)}, folder / WEIGHTS_FILE)  # a pickle under the name of plain tensors
    broken = validate(1, folder)
    assert broken["network"].outcome == NOT_MET
    assert "test image" not in broken

    network = load_network(spare)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(float("nan"))
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        (folder / name).unlink()
    save_network(folder, network)
    damaged = validate(1, folder)
    assert damaged["network"].outcome == NOT_MET
    assert "finite" in damaged["network"].message
