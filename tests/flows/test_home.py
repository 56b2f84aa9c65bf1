"""microseg's home: no command that only reads creates one, and one that was moved or copied works where it is now."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from click.testing import Result

from flows import adapt, evaluate, export, promote, rollback, segment, train
from flows.adapt import adapt as adapt_flow
from flows.health import history, status
from flows.ingest import ingest
from microseg.config.environment import HOME_FILE, Home
from microseg.models.files import load_network
from microseg.registry.relocation import outside_locations
from tests.flows.conftest import open_registry

READS = """
import sys
from flows.cli import main

commands = [[name] for name in main.COMMANDS] + [["service", name] for name in main.SERVICE_COMMANDS]
for words in [["--help"], ["--version"], ["service", "--help"], *([*it, "--help"] for it in commands),
              ["status"], ["history"], ["doctor"], ["promote"], ["segment", "."], ["train", "lab_a"]]:
    sys.argv = ["microseg", *words]
    try:
        main.main()
        code = 0
    except SystemExit as left:
        code = left.code
    print("CODE", code, *words, flush=True)
"""


def test_reading_and_help_create_nothing(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MICROSEG_"))}
    done = subprocess.run(
        [sys.executable, "-c", READS], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    codes = {line.split(maxsplit=2)[2]: line.split()[1] for line in done.stdout.splitlines() if line.startswith("CODE")}
    failed = {"history", "promote", "segment .", "train lab_a"}
    assert len(codes) > 20, done.stderr
    assert {words for words, code in codes.items() if code != "0"} - {"doctor"} == failed
    assert " ".join(done.stderr.split()).count(f"No microseg home at {tmp_path}/var. Set MICROSEG_HOME") == len(failed)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [adapt, evaluate, export, promote, rollback, segment, train, history])
def test_commands_reject_a_missing_home_and_one_of_an_older_version(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any
) -> None:
    monkeypatch.setenv("MICROSEG_HOME", str(tmp_path / "home"))
    arguments = {adapt: ["lab_b"], train: ["lab_a"], segment: ["images"]}.get(command, [])
    result = run(command.command, *arguments)
    assert (result.exit_code, "No microseg home at" in result.stderr) == (1, True)
    assert not (tmp_path / "home").exists()
    (tmp_path / "home" / "mlflow").mkdir(parents=True)
    (tmp_path / "home" / "mlflow" / "mlflow.db").touch()
    result = run(command.command, *arguments)
    assert (result.exit_code, "of microseg 0.1" in " ".join(result.stderr.split())) == (1, True)
    assert not (tmp_path / "home" / HOME_FILE).exists()


def test_status_without_a_home(run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICROSEG_HOME", str(tmp_path / "home"))
    result = run(status.command)
    assert result.exit_code == 0
    assert f"{tmp_path}/home (MICROSEG_HOME; does not exist yet)" in result.stdout
    assert "No labs yet. Add one: microseg ingest FOLDER" in result.stdout
    assert not (tmp_path / "home").exists()
    (tmp_path / "home" / "mlflow").mkdir(parents=True)
    (tmp_path / "home" / "mlflow" / "mlflow.db").touch()
    assert "of microseg 0.1" in " ".join(run(status.command).stderr.split())


def snapshot(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_moved_and_a_copied_home_work(done: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(done.home)
    first, moved, copy = tmp_path / "first home", tmp_path / "moved home", tmp_path / "a copy"
    shutil.copytree(done.home, first)
    shutil.rmtree(first / "models")  # networks that were downloaded before
    assert open_registry(first).versions.find("production").version == 2
    first.rename(moved)
    monkeypatch.setenv("MICROSEG_HOME", str(moved))
    registry = open_registry(moved)
    assert load_network(registry.versions.download("production", moved / "models")).config.encoder == "blocks"
    assert ingest(done.lab_b).digest == done.ingested["lab_b"].digest
    assert outside_locations(Home(moved)) == []

    shutil.copytree(moved, copy)
    untouched = snapshot(moved)
    monkeypatch.setenv("MICROSEG_HOME", str(copy))
    adapted = adapt_flow("lab_b", base="1")
    new = open_registry(copy).versions.find(adapted.version)
    assert load_network(open_registry(copy).versions.download(new, tmp_path / "fetched")).config.encoder == "blocks"
    assert open_registry(moved).versions.find("candidate" if adapted.version == 2 else "production").version == 2
    assert [version.version for version in open_registry(moved).versions.all()] == [2, 1]
    assert {path for path in snapshot(moved) if path not in untouched} <= {
        moved / "mlflow" / name for name in ("mlflow.db-wal", "mlflow.db-shm")
    }
    assert snapshot(done.home) == before
    assert not first.exists()
    for home in (moved, copy):
        with sqlite3.connect(home / "mlflow" / "mlflow.db") as connection:
            dump = "\n".join(connection.iterdump())
        for other in {done.home, first, moved, copy} - {home}:
            assert f"{other}/" not in dump
            assert f"{quote(str(other))}/" not in dump


def test_an_address_outside_the_home_is_found(copied: Any, tmp_path: Path) -> None:
    copied.registry.versions.all()
    with sqlite3.connect(copied.home / "mlflow" / "mlflow.db") as connection:
        connection.execute(
            "UPDATE model_versions SET source = ? WHERE version = 1", ((tmp_path / "elsewhere").as_uri(),)
        )
    assert outside_locations(Home(copied.home)) == [(tmp_path / "elsewhere").as_uri()]
