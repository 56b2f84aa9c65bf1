"""Logging of runs, checked with MLflow's client."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from microseg.errors import RegistryError
from microseg.registry.registry import Registry
from microseg.registry.version import EXPERIMENT

DIGEST = "0123456789abcdef0123456789abcdef.dir"


def client_of(registry: Registry) -> MlflowClient:
    return MlflowClient(tracking_uri=registry.tracking_uri, registry_uri=registry.tracking_uri)


def read(registry: Registry, run_id: str) -> Run:
    return client_of(registry).get_run(run_id)


def test_params_metrics_and_tags_are_logged(empty: Registry) -> None:
    with empty.runs.start("source lab_a", tags={"lab": "lab_a"}, params={"seed": 0, "training": {"lr": 0.1}}) as run:
        assert read(empty, run.id).info.status == "RUNNING"
        run.log_metrics({"loss": 1.5, "val/dice": 0.25}, step=1)
        run.log_metrics({"loss": 0.5, "hole": math.nan}, step=2)
        run.log_params({"training": {"encoder": "resnet18"}})
        run.set_tag("note", "fine")
    found = read(empty, run.id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "source lab_a"
    assert found.data.params == {"seed": "0", "training.lr": "0.1", "training.encoder": "resnet18"}
    assert found.data.metrics["val/dice"] == 0.25
    assert math.isnan(found.data.metrics["hole"])
    history = client_of(empty).get_metric_history(run.id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.5), (2, 0.5)]
    assert {"lab": "lab_a", "note": "fine", "mlflow.source.name": "microseg"}.items() <= found.data.tags.items()
    experiment = client_of(empty).get_experiment(found.info.experiment_id)
    assert experiment.name == EXPERIMENT


def test_dataset_is_logged_with_the_hash_of_dvc(empty: Registry) -> None:
    with empty.runs.start("r") as run:
        run.log_dataset("lab_a", DIGEST, "/data/labs/lab_a.dvc", "source")
    [entry] = read(empty, run.id).inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest, entry.dataset.source_type) == ("lab_a", DIGEST, "dvc")
    assert json.loads(entry.dataset.source) == {"uri": "/data/labs/lab_a.dvc", "lab": "lab_a", "digest": DIGEST}
    assert [(tag.key, tag.value) for tag in entry.tags] == [("mlflow.data.context", "source")]


def test_dictionaries_become_artifacts(empty: Registry) -> None:
    with empty.runs.start("r") as run:
        run.log_dict({"dice": 0.5}, "evaluation/lab_a.json")
    root = read(empty, run.id).info.artifact_uri
    assert json.loads(Path(download_artifacts(f"{root}/evaluation/lab_a.json")).read_text()) == {"dice": 0.5}


def test_artifacts_are_stored_beside_the_database_or_in_the_artifact_root(empty: Registry, tmp_path: Path) -> None:
    with empty.runs.start("r") as run:
        run.log_dict({}, "a.json")
    assert list((tmp_path / "store" / "artifacts").rglob("a.json"))

    other = Registry(f"sqlite:///{tmp_path}/new folder/mlflow.db", artifact_root=str(tmp_path / "else where"))
    (tmp_path / "new folder").mkdir()
    (tmp_path / "store" / "mlflow.db").rename(tmp_path / "new folder" / "mlflow.db")
    client_of(other).rename_experiment(read(other, run.id).info.experiment_id, "renamed")
    with other.runs.start("r") as run:
        run.log_dict({}, "b.json")
    assert list((tmp_path / "else where").rglob("b.json"))


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ValueError("no images"), "FAILED", "ValueError: no images"),
        (KeyboardInterrupt(), "KILLED", "KeyboardInterrupt: "),
        (SystemExit(3), "KILLED", "SystemExit: 3"),
        (ValueError("x" * 20_000), "FAILED", "ValueError: " + "x" * 4988),
    ],
)
def test_error_ends_the_run_and_is_recorded(empty: Registry, error: BaseException, status: str, text: str) -> None:
    with pytest.raises(type(error)) as caught, empty.runs.start("r") as run:
        raise error
    assert caught.value is error
    found = read(empty, run.id)
    assert found.info.status == status
    assert found.data.tags["error"] == text
    assert found.info.end_time is not None


def test_error_is_raised_if_the_run_cannot_be_ended(empty: Registry) -> None:
    def lose() -> None:
        with empty.runs.start("r") as run:
            client_of(empty).delete_run(run.id)  # a deleted run cannot be tagged
            raise ValueError("the cause")

    with pytest.raises(ValueError, match="the cause") as caught:
        lose()
    assert "could not be marked FAILED" in caught.value.__notes__[0]


def test_param_cannot_change(empty: Registry) -> None:
    refusal = pytest.raises(RegistryError, match=r"sqlite.*cannot log params.*seed")
    with refusal, empty.runs.start("r", params={"seed": 0}) as run:
        run.log_params({"seed": 1})
    assert read(empty, run.id).info.status == "FAILED"


def test_error_of_a_deleted_experiment_states_how_to_restore_it(empty: Registry) -> None:
    with empty.runs.start("r") as run:
        pass
    experiment_id = read(empty, run.id).info.experiment_id
    client_of(empty).delete_experiment(experiment_id)
    again = Registry(empty.tracking_uri)
    with (
        pytest.raises(RegistryError, match=f"mlflow experiments restore --experiment-id {experiment_id}"),
        again.runs.start("r"),
    ):
        pass


def test_metrics_that_cannot_be_written_do_not_end_the_work(
    empty: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning when they fail, one when they are written again; nothing is tried in between."""
    now, tried = [1000.0], []
    monkeypatch.setattr("microseg.registry.runs.time.monotonic", lambda: now[0])

    def away(*_: object, **__: object) -> None:
        tried.append(now[0])
        raise MlflowException("API request failed: Max retries exceeded")

    with empty.runs.start("r") as run:
        client = run._connection.client
        run.log_metrics({"loss": 1.0}, 1)
        with monkeypatch.context() as patch:
            patch.setattr(client, "log_batch", away)
            patch.setattr(client, "set_tag", away)
            for _ in range(20):
                now[0] += 1
                run.log_metrics({"loss": 2.0}, 2)
                run.set_tag("note", "lost")
        assert len(tried) == 1
        now[0] += 60
        run.log_metrics({"loss": 3.0}, 3)
    history = client_of(empty).get_metric_history(run.id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (3, 3.0)]
    assert read(empty, run.id).info.status == "FINISHED"
    warnings = [record.message for record in caplog.records if record.name == "microseg.registry.runs"]
    assert len(warnings) == 2
    assert "The work goes on" in warnings[0]
    assert "it lacks metrics of 40 requests" in warnings[1]


def test_run_that_cannot_be_marked_finished_does_not_undo_its_work(
    empty: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: object) -> None:
        raise MlflowException("API request failed: Max retries exceeded")

    with empty.runs.start("r") as run:
        monkeypatch.setattr(run._connection.client, "set_terminated", away)
    assert f"The run {run.id} remains marked as running" in caplog.text


KILLED = """
import os, sys
from pathlib import Path
from microseg.registry.registry import Registry
registry = Registry(sys.argv[1], locks=Path(sys.argv[2]))
with registry.runs.start("train") as run:
    client = registry.versions._connection.client
    experiment = client.get_run(run.id).info.experiment_id
    client.create_logged_model(experiment, name="half", source_run_id=run.id)
    os._exit(9)
"""


def test_run_of_a_dead_process_is_ended(registry: Registry, tmp_path: Path) -> None:
    locks = tmp_path / "locks"
    subprocess.run([sys.executable, "-c", KILLED, registry.tracking_uri, str(locks)], check=False, timeout=300)
    alive = Registry(registry.tracking_uri, locks=locks)
    client = MlflowClient(registry.tracking_uri, registry.tracking_uri)
    experiment = client.get_experiment_by_name("microseg").experiment_id
    [run] = client.search_runs([experiment], "attributes.status = 'RUNNING'")
    with alive.runs.start("adapt") as log:  # ends it first
        assert Registry(registry.tracking_uri, locks=locks).runs.end_abandoned() == []  # this one lives
        assert client.get_run(log.id).info.status == "RUNNING"
    ended = client.get_run(run.info.run_id)
    assert (ended.info.status, ended.data.tags["error"]) == ("KILLED", "Its process died.")
    models = client.search_logged_models([experiment], f"source_run_id = '{run.info.run_id}'")
    assert [str(model.status) for model in models] == ["FAILED"]
    assert client.get_run(log.id).info.status == "FINISHED"
    assert list(locks.rglob("*.lock")) == []
