"""A local registry is read without MLflow as it is with it."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

from microseg.config.environment import sqlite_file
from microseg.errors import RegistryError, VersionNotFoundError
from microseg.registry.production import AuditInfo
from microseg.registry.registry import Registry
from microseg.registry.sqlite_reader import _REVISIONS, SqliteReader
from microseg.registry.version import MODEL_NAME, TARGET_TAG


def read(registry: Registry) -> SqliteReader:
    file = sqlite_file(registry.tracking_uri)
    assert file is not None
    return SqliteReader(file, lambda: {"lab_b"})


def test_versions_history_and_requests_are_those_of_mlflow(registry: Registry) -> None:
    labs = Registry(registry.tracking_uri, labs=lambda: {"lab_b"})
    client = mlflow.MlflowClient(tracking_uri=registry.tracking_uri, registry_uri=registry.tracking_uri)
    registry.versions.set_tags(2, {TARGET_TAG: "lab_b"})
    registry.production.promote(1, audit=AuditInfo("ann", reason="first"))
    registry.production.promote(2, alias="production-lab_b", audit=AuditInfo("ben"))
    registry.production.promote(2)
    registry.production.roll_back()
    client.set_registered_model_alias(MODEL_NAME, "production", "2")  # a request
    found = read(registry)
    assert found.production.history() == labs.production.history()
    assert found.production.pending_changes() == labs.production.pending_changes() != ()
    for lab in (None, "lab_b", "lab_c"):
        assert found.production.active(lab) == labs.production.active(lab)
        assert list(found.versions.adapted_to(str(lab))) == list(labs.versions.adapted_to(str(lab)))
    client.delete_model_version(MODEL_NAME, "2")
    assert list(read(registry).versions.adapted_to("lab_b")) == []


def test_a_missing_file_is_an_empty_registry_and_is_not_created(tmp_path: Path) -> None:
    found = SqliteReader(tmp_path / "mlflow.db")
    assert (found.production.history(), list(tmp_path.iterdir())) == ((), [])
    with pytest.raises(VersionNotFoundError):
        found.production.active()


def test_it_changes_nothing(registry: Registry) -> None:
    with pytest.raises(RegistryError, match="to read the registry only"):
        read(registry).production.request(1)


def test_a_deleted_entry_is_reported(registry: Registry) -> None:
    registry.production.promote(1)
    client = mlflow.MlflowClient(tracking_uri=registry.tracking_uri, registry_uri=registry.tracking_uri)
    client.delete_model_version("microseg-promotions", "1")
    with pytest.raises(RegistryError, match="version 1 of it was deleted"):
        read(registry)


def set_revisions(registry: Registry, *revisions: str) -> None:
    file = sqlite_file(registry.tracking_uri)
    assert file is not None
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("DELETE FROM alembic_version")
        connection.executemany("INSERT INTO alembic_version VALUES (?)", [(it,) for it in revisions])


@pytest.mark.parametrize("revisions", [("0123456789ab",), (), ("0123456789ab", "dc11669786a5")])
def test_tables_of_an_unknown_revision_are_left_to_mlflow(registry: Registry, revisions: tuple[str, ...]) -> None:
    set_revisions(registry, *revisions)
    with pytest.raises(sqlite3.DatabaseError, match="expected tables of the revision"):
        read(registry)


def test_the_revision_of_this_mlflow_is_known(registry: Registry) -> None:
    """If this fails after an upgrade of MLflow, and the comparison above does not, add its revision."""
    file = sqlite_file(registry.tracking_uri)
    assert file is not None
    with closing(sqlite3.connect(file)) as connection:
        ((revision,),) = connection.execute("SELECT version_num FROM alembic_version")
    assert revision in _REVISIONS


@pytest.mark.parametrize("name", ["MLFLOW_WORKSPACE", "MLFLOW_ENABLE_WORKSPACES"])
def test_workspaces_are_left_to_mlflow(registry: Registry, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "true")
    with pytest.raises(sqlite3.NotSupportedError, match=name):
        read(registry)


def test_status_and_history_import_neither_mlflow_nor_prefect() -> None:
    code = (
        "import sys, flows.health.status, flows.health.history, microseg.registry.sqlite_reader; "
        "print({'mlflow', 'prefect', 'torch', 'pandas', 'scipy', 'sqlalchemy'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
