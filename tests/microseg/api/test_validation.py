"""Is a version fit for production?"""

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
from microseg.registry.gate import Decision, RuleResult
from microseg.registry.registry import Registry
from microseg.registry.verdict import verdict_tags
from microseg.registry.version import MODEL_NAME


@pytest.fixture
def registry(tmp_path: Path, tiny_network: Callable[..., PyramidSegmenter]) -> Registry:
    registry = Registry(f"sqlite:///{tmp_path / 'mlflow.db'}")
    save_network(tmp_path / "network", tiny_network())
    with registry.run("train") as run:
        example = np.zeros((32, 32, 3), np.uint8)
        registry.register(run, tmp_path / "network", example=example, method="supervised", description="A card.")
    registry.set_tags(1, verdict_tags(Decision(True, (RuleResult(True, "a", "Good."),)), None))
    return registry


def test_versions(registry: Registry, tmp_path: Path) -> None:
    """A fit one, one of another making that was never judged, broken weights: one test, as a database takes seconds."""
    cache = tmp_path / "cache"
    checks = validate_version(registry, registry.resolve(1), cache)
    assert [(check.name, check.passed) for check in checks] == [
        ("a microseg segmenter", True), ("weights", True), ("smoke image", True), ("gate report", True)
    ]  # fmt: skip

    (tmp_path / "else").mkdir()
    client = mlflow.MlflowClient(tracking_uri=registry.tracking_uri, registry_uri=registry.tracking_uri)
    client.create_model_version(MODEL_NAME, source=(tmp_path / "else").as_uri())
    foreign = {check.name: check for check in validate_version(registry, registry.resolve(2), cache)}
    assert not foreign["a microseg segmenter"].passed
    assert "was it registered by microseg?" in foreign["a microseg segmenter"].sentence
    assert "microseg evaluate 2" in foreign["gate report"].sentence

    folder = registry.download(1, cache)
    spare = tmp_path / "spare"
    shutil.copytree(folder, spare)
    torch.save({"weights": torch.zeros(1)}, folder / WEIGHTS_FILE)  # a pickle under the name of plain tensors
    broken = {check.name: check for check in validate_version(registry, registry.resolve(1), cache)}
    assert broken["a microseg segmenter"].passed
    assert not broken["weights"].passed
    assert "smoke image" not in broken

    network = load_network(spare)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(float("nan"))
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        (folder / name).unlink()
    save_network(folder, network)
    useless = {check.name: check for check in validate_version(registry, registry.resolve(1), cache)}
    assert not useless["smoke image"].passed
    assert "no numbers that sum to one" in useless["smoke image"].sentence
