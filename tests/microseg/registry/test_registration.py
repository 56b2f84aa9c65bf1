"""What a version tells of its making."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import mlflow
import numpy as np
import pytest

from microseg.errors import RegistryError, WeightsError
from microseg.registry.registry import Registry
from microseg.registry.version import MODEL_NAME

DIGEST_A = "0123456789abcdef0123456789abcdef.dir"
DIGEST_B = "fedcba9876543210fedcba9876543210.dir"


def client_of(registry: Registry) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri=registry.tracking_uri, registry_uri=registry.tracking_uri)


def test_a_version_tells_where_it_comes_from(registry: Registry) -> None:
    first, second = registry.resolve(1), registry.resolve(2)
    assert first.tags == {
        "method": "source",
        "labs": "lab_a",
        "classes": "background, gland",
        "mpp": "0.5",
        "encoder": "blocks",
        "dataset.lab_a": DIGEST_A,
        "commit": "c0ffee",
        "model_id": first.model_id,
    }
    assert first.datasets == {"lab_a": DIGEST_A}
    assert second.datasets == {"lab_a": DIGEST_A, "lab_b": DIGEST_B}  # not lab_c: it was only evaluated on
    assert {"mpp": "unknown", "commit": "unknown", "why": "b", "labs": "lab_a, lab_b"}.items() <= second.tags.items()
    assert first.description == "First."
    assert first.uri == "models:/microseg-segmenter/1"
    assert timedelta(0) < datetime.now(UTC) - first.created < timedelta(hours=1)
    run = client_of(registry).get_run(second.run_id)
    assert run.info.run_name == "adapt lab_b"
    assert [output.model_id for output in run.outputs.model_outputs] == [second.model_id]


def test_the_logged_model_leads_to_its_version(registry: Registry) -> None:
    first = registry.resolve(1)
    assert first.model_id is not None
    logged = client_of(registry).get_logged_model(first.model_id)
    assert logged.status == "READY"
    assert logged.name == "source lab_a"
    assert logged.params == {"epochs": "3"}
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": MODEL_NAME, "version": "1"}]
    assert logged.tags["mlflow.note.content"] == "First."


def test_a_broken_folder_is_not_registered(empty: Registry, tmp_path: Path) -> None:
    with pytest.raises(WeightsError), empty.run("r") as run:
        empty.register(run, tmp_path, example=np.zeros((32, 32, 3), np.uint8), method="m", description="d")
    assert empty.versions() == ()
    assert client_of(empty).get_run(run.id).info.status == "FAILED"


def test_a_version_that_cannot_be_served_is_not_registered(registry: Registry, demo) -> None:
    folder = demo.networks[0]
    with pytest.raises(RegistryError), registry.run("odd") as run:
        registry.register(run, folder, example=np.zeros((32, 16, 3), np.uint8), method="m", description="d")
    assert len(registry.versions()) == 2
    experiment_id = client_of(registry).get_run(run.id).info.experiment_id
    states = {model.name: model.status for model in client_of(registry).search_logged_models([experiment_id])}
    assert states == {"source lab_a": "READY", "adapt lab_b": "READY", "odd": "FAILED"}
