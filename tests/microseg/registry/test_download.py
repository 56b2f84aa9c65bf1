"""Fetching a version's network."""

from pathlib import Path

import mlflow
import pytest
import torch

from microseg.errors import RegistryError
from microseg.models.config import CONFIG_FILE, WEIGHTS_FILE
from microseg.models.files import load_network
from microseg.registry.registry import Registry
from microseg.registry.version import MODEL_NAME


def test_what_is_fetched_is_what_was_registered(registry: Registry, demo, tmp_path: Path) -> None:
    source = demo.networks[0]
    folder = registry.download(1, tmp_path / "cache")
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    assert (folder / WEIGHTS_FILE).read_bytes() == (source / WEIGHTS_FILE).read_bytes()
    tile = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(load_network(folder)(tile), load_network(source)(tile))


def test_a_version_is_fetched_once(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (registry.download(number, tmp_path / "cache") for number in (1, 2))
    assert first != second
    assert len(list((tmp_path / "cache").iterdir())) == 2  # and nothing half done is left

    def unreachable(**_: object) -> None:
        raise OSError("the storage is gone")

    monkeypatch.setattr("microseg.registry.download.download_artifacts", unreachable)
    assert registry.download("1", tmp_path / "cache") == first
    with pytest.raises(RegistryError, match="the storage is gone"):
        registry.download(1, tmp_path / "another cache")


def test_a_version_of_another_making(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    client = mlflow.MlflowClient(tracking_uri=registry.tracking_uri, registry_uri=registry.tracking_uri)
    client.create_model_version(MODEL_NAME, source=(tmp_path / "else").as_uri())
    with pytest.raises(RegistryError, match=r"files of version 3 \(was it registered by microseg\?\)"):
        registry.download(3, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
