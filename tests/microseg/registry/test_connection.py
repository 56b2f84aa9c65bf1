import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    TEMPORARILY_UNAVAILABLE,
    UNAUTHENTICATED,
)
from sqlalchemy.exc import OperationalError

from microseg.errors import RegistryError, is_transient
from microseg.registry.connection import registry_errors, server_version
from microseg.registry.registry import Registry


def test_absent_server_is_reported_at_once() -> None:
    start = time.perf_counter()
    with pytest.raises(RegistryError, match=r"http://127.0.0.1:9 cannot be opened: no server answers there; start it"):
        Registry("http://127.0.0.1:9").versions.all()
    assert time.perf_counter() - start < 60  # MLflow would try again for minutes


def test_rejects_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database, but as long as one" * 100)
    with pytest.raises(RegistryError, match="cannot be opened"):
        Registry(f"sqlite:///{tmp_path}/mlflow.db").versions.all()


def test_messages_contain_no_passwords() -> None:
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
        (ModuleNotFoundError("No module named 'psycopg2'"), "install the package that is named there"),
        (MlflowException("Detected out-of-date database schema (found …)"), "`mlflow db upgrade`"),
    ],
)
def test_messages_of_known_errors_contain_advice(error: Exception, advice: str) -> None:
    with pytest.raises(RegistryError) as caught, registry_errors("sqlite:///x", "be opened"):
        raise error
    text = str(caught.value)
    assert text.startswith("the registry at sqlite:///x cannot be opened: ")
    assert advice in text
    assert caught.value.__cause__ is error


def test_database_is_opened_at_first_use(tmp_path: Path) -> None:
    Registry(f"sqlite:///{tmp_path}/later/mlflow.db")
    assert not (tmp_path / "later").exists()


def test_process_wide_mlflow_uri_is_not_changed(empty: Registry) -> None:
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri(), os.environ.get("MLFLOW_TRACKING_URI")
    with empty.runs.start("r") as run:
        run.log_metrics({"a": 1})
    assert mlflow.active_run() is None
    assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri(), os.environ.get("MLFLOW_TRACKING_URI")) == before


def test_new_database_is_created_without_output(fresh) -> None:
    assert fresh.output == ""
    assert list(fresh.working_folder.iterdir()) == []  # no mlruns/ left in the current folder


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (OSError("no server answers there"), True),
        (MlflowException("API request failed: Max retries exceeded", error_code=INTERNAL_ERROR), True),
        (MlflowException("try later", error_code=TEMPORARILY_UNAVAILABLE), True),
        (OperationalError("INSERT", {}, Exception("database is locked")), True),
        (MlflowException("no", error_code=PERMISSION_DENIED), False),
        (MlflowException("Detected out-of-date database schema", error_code=INTERNAL_ERROR), False),
        (MlflowException("Invalid Host header", error_code=INTERNAL_ERROR), False),
        (MlflowException("bad name", error_code=INVALID_PARAMETER_VALUE), False),
    ],
)
def test_tells_a_registry_that_is_away_from_one_that_refuses(error: Exception, passes: bool) -> None:
    with pytest.raises(RegistryError) as caught, registry_errors("http://127.0.0.1:1", "set tags"):
        raise error
    assert is_transient(caught.value) is passes


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [(200, "3.17.2\n", "3.17.2"), (401, "You are not authenticated.", ""), (200, "<html>a proxy</html>", "")],
)
def test_version_of_a_server_with_or_without_accounts(
    monkeypatch: pytest.MonkeyPatch, status: int, text: str, expected: str
) -> None:
    accounts = []

    def answer(credentials: Any, *_: object, **__: object) -> SimpleNamespace:
        accounts.append((credentials.username, credentials.password))
        return SimpleNamespace(status_code=status, text=text)

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a password")
    monkeypatch.setattr("microseg.registry.connection.http_request", answer)
    assert server_version("http://127.0.0.1:5000") == expected
    assert accounts == [("ann", "a password")]
