"""Evidence on versions: stored with them in MLflow, copies are verified."""

from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from microseg.errors import RegistryError
from microseg.registry.evidence import EvidenceKey
from microseg.registry.registry import Registry
from microseg.registry.version import MODEL_NAME

KEY = EvidenceKey("m-2:aa", "m-1:bb", "lab_b", {"lab_a": "1.dir", "lab_b": "2.dir"}, {"halo": 32})


def test_key_depends_on_everything_that_was_measured() -> None:
    changed = [
        replace(KEY, candidate="m-3:aa"),
        replace(KEY, candidate="m-2:ab"),
        replace(KEY, production=None),
        replace(KEY, production="m-1:bc"),
        replace(KEY, lab="lab_c"),
        replace(KEY, lab=None),
        replace(KEY, datasets={"lab_a": "1.dir", "lab_b": "3.dir"}),
        replace(KEY, settings={"halo": 16}),
    ]
    assert len({key.digest for key in (KEY, *changed)}) == 9
    assert replace(KEY, datasets={"lab_b": "2.dir", "lab_a": "1.dir"}).digest == KEY.digest


def test_copy_counts_only_if_mlflow_has_the_same(registry: Registry, tmp_path: Path) -> None:
    version, cache = registry.versions.find(2), tmp_path / "copy" / "comparison.json"
    cache.parent.mkdir()
    cache.write_text("{}")  # of another registry, with the same number of the version
    assert registry.evidence.read(version, KEY, cache) is None
    registry.evidence.write(version, KEY, '{"dice": 0.8}')
    version = registry.versions.find(2)
    assert registry.evidence.read(version, replace(KEY, lab="lab_c"), cache) is None
    assert registry.evidence.read(version, KEY, cache) == '{"dice": 0.8}'
    assert cache.read_text() == '{"dice": 0.8}'
    assert registry.evidence.read(version, KEY, tmp_path / "new" / "comparison.json") == '{"dice": 0.8}'
    assert registry.evidence.read(registry.versions.find(1), KEY, cache) is None


def test_changed_evidence_in_mlflow_is_refused(registry: Registry, tmp_path: Path) -> None:
    version = registry.versions.find(2)
    registry.evidence.write(version, KEY, '{"dice": 0.8}')
    client = MlflowClient(registry.tracking_uri, registry.tracking_uri)
    client.set_model_version_tag(MODEL_NAME, "2", f"evidence.{KEY.digest}", "0" * 64)
    with pytest.raises(RegistryError, match="run microseg evaluate 2 again"):
        registry.evidence.read(registry.versions.find(2), KEY, tmp_path / "comparison.json")
