"""The parameters of inference reach the engine."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.workspace import Workspace
from microseg.config.environment import Home
from microseg.config.settings import load_settings
from microseg.errors import SettingsError
from microseg.models.network import PyramidSegmenter
from microseg.registry.sqlite_reader import SqliteReader


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICROSEG_HOME", str(tmp_path))
    Home(tmp_path).create()


CHANGES = ("device=cpu", "inference.tile_size=96", "inference.halo=16", "inference.batch_size=3")


def test_every_setting_reaches_the_engine(
    tiny_network: Callable[..., PyramidSegmenter], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, version = tiny_network(), SimpleNamespace(run_id="r1")
    seen: list[dict[str, Any]] = []

    def engine(given: PyramidSegmenter, **options: Any) -> SimpleNamespace:
        assert given is network
        seen.append(options)
        return SimpleNamespace(parameters={}, weights_sha256="")

    monkeypatch.setattr("microseg.inference.engine.Engine", engine)
    monkeypatch.setattr("microseg.api.segmenter.Engine", engine)
    monkeypatch.setattr(Workspace, "network", lambda *_: network)
    monkeypatch.setattr("microseg.api.segmenter.version_provenance", lambda _: None)
    monkeypatch.setattr(
        Workspace, "registry", SimpleNamespace(versions=SimpleNamespace(reference_distribution=lambda _: None))
    )
    for compiled in (False, True):
        workspace = Workspace(
            load_settings(
                (*CHANGES, f"inference.compile={str(compiled).lower()}", "inference.split_touching=[nucleus]")
            )
        )
        workspace.engine(network)
        workspace.segmenter(version)  # type: ignore[arg-type]
    expected = {"device": "cpu", "tile": 96, "halo": 16, "batch": 3, "split": ("nucleus",)}
    assert seen == [expected | {"compiled": compiled} for compiled in (False, False, True, True)]


def test_compiling_is_refused_where_there_is_no_cuda(tiny_network: Callable[..., PyramidSegmenter]) -> None:
    with pytest.raises(SettingsError, match=r"set inference.compile to false, or device to cuda"):
        Workspace(load_settings(("device=cpu", "inference.compile=true"))).engine(tiny_network())


def test_a_registry_whose_tables_are_unknown_is_read_by_mlflow(tmp_path: Path, empty_registry: Path) -> None:
    database = tmp_path / "mlflow" / "mlflow.db"
    database.parent.mkdir()
    shutil.copy(empty_registry, database)
    assert isinstance(Workspace(load_settings()).read_registry(), SqliteReader)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'of a later release'")
    workspace = Workspace(load_settings())
    assert workspace.read_registry() is workspace.registry
