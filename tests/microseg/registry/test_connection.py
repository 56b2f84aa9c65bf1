import os
import time
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, UNAUTHENTICATED

from microseg.errors import RegistryError
from microseg.registry.connection import registry_errors
from microseg.registry.registry import Registry


def test_a_server_that_is_not_there_is_told_at_once() -> None:
    start = time.perf_counter()
    with pytest.raises(RegistryError, match=r"http://127.0.0.1:9 cannot be opened: no server answers there; start it"):
        Registry("http://127.0.0.1:9").versions()
    assert time.perf_counter() - start < 5


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database, but long enough to be looked at as one" * 100)
    with pytest.raises(RegistryError, match="cannot be opened"):
        Registry(f"sqlite:///{tmp_path}/mlflow.db").versions()


def test_passwords_are_not_repeated() -> None:
    with pytest.raises(RegistryError) as caught, registry_errors("postgresql://me:secret@db:5432/mlflow", "be opened"):
        raise OSError("no route")
    assert str(caught.value) == "the registry at postgresql://***@db:5432/mlflow cannot be opened: no route"


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError("(sqlite3.OperationalError) database is locked"), "run an MLflow server on it instead"),
        (MlflowException("who are you", UNAUTHENTICATED), "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        (MlflowException("no", PERMISSION_DENIED), "ask the server's administrator"),
        (MlflowException("Invalid Host header - possible …", PERMISSION_DENIED), "--allowed-hosts naming the host"),
        (MlflowException("Detected out-of-date database schema (found …)"), "`mlflow db upgrade`"),
    ],
)
def test_known_faults_come_with_advice(error: Exception, advice: str) -> None:
    with pytest.raises(RegistryError) as caught, registry_errors("sqlite:///x", "be opened"):
        raise error
    text = str(caught.value)
    assert text.startswith("the registry at sqlite:///x cannot be opened: ")
    assert advice in text
    assert caught.value.__cause__ is error


def test_nothing_is_opened_before_it_is_needed(tmp_path: Path) -> None:
    Registry(f"sqlite:///{tmp_path}/later/mlflow.db")
    assert not (tmp_path / "later").exists()


def test_the_process_keeps_its_own_mlflow_server(empty: Registry) -> None:
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri(), os.environ.get("MLFLOW_TRACKING_URI")
    with empty.run("r") as run:
        run.log_metrics({"a": 1})
    assert mlflow.active_run() is None
    assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri(), os.environ.get("MLFLOW_TRACKING_URI")) == before


def test_a_fresh_database_is_made_without_a_word(fresh) -> None:
    assert fresh.said == ""
    assert list(fresh.working_folder.iterdir()) == []  # no mlruns/ left in the current folder
