"""Each fault is found, with what to do about it. `test_service.py` checks real servers."""

import shutil
import sqlite3
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from flows.health import machine
from flows.health.doctor import command, run_checks
from flows.health.machine import Finding
from microseg.config.settings import load_settings

Usage = namedtuple("Usage", "total used free")


def found(check: str) -> list[Finding]:
    return [finding for finding in run_checks(load_settings()) if finding.check == check]


def test_finds_no_error_in_a_working_home(copied: Any) -> None:
    findings = run_checks(load_settings())
    assert [it for it in findings if it.level == "error" and it.check != "schedules"] == []
    assert {it.check for it in findings} >= {"fastapi", "sqlalchemy", "home", "disk", "MLflow", "aliases"}
    assert "version 2 is in production" in {it.message for it in findings}


@pytest.mark.parametrize(
    ("package", "version", "message"),
    [
        ("fastapi", "0.155.0", "Prefect 3.8 does not start"),
        ("sqlalchemy", "2.1.0", "never creates a scheduled run"),
        ("mlflow", "2.20.0", "no webhook when an alias changes"),
    ],
)
def test_finds_versions_that_do_not_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str, version: str, message: str
) -> None:
    real = machine.version
    monkeypatch.setattr(machine, "version", lambda name: version if name == package else real(name))
    [finding] = [it for it in machine.check_packages(load_settings()) if it.check == package]
    assert (finding.level, message in finding.message) == ("error", True)
    assert finding.action.startswith(f"pip install '{package}")


def test_finds_a_full_disk(copied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _place: Usage(10, 10, 1_250_000_000))
    assert {(it.level, it.message.partition(" are")[0]) for it in found("disk")} == {("error", "1.2 GB")}


@pytest.mark.parametrize(
    ("alias", "level", "message"),
    [
        ("Production", "error", "which promotes nothing"),
        ("prod", "error", "which promotes nothing"),
        ("production-lab_x", "warning", "there is no lab 'lab_x'"),
        ("production-lab_b", "warning", "pending alias change"),
    ],
)
def test_finds_misspelled_and_pending_aliases(copied: Any, alias: str, level: str, message: str) -> None:
    copied.registry.versions.set_alias(alias, 1)
    assert any(it.level == level and message in it.message for it in found("aliases"))


def test_finds_secrets_that_others_can_read(copied: Any) -> None:
    assert load_settings().environment.webhook_secret
    assert found("secrets") == []
    (copied.home / "secrets" / "webhook-secret").chmod(0o644)
    assert found("secrets")[0].level == "error"


def test_finds_a_remote_that_cannot_be_written(copied: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {it.level for it in found("DVC remote")} == {"warning"}  # on the same disk
    (tmp_path / "a file").touch()
    monkeypatch.setenv("MICROSEG_DVC_REMOTE", str(tmp_path / "a file" / "remote"))
    assert {it.level for it in found("DVC remote")} == {"error"}
    monkeypatch.setenv("MICROSEG_DVC_REMOTE", "nonsense://store")
    assert {it.level for it in found("DVC remote")} == {"error"}


def test_finds_a_registry_that_cannot_be_reached(copied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert "no server answers there" in found("MLflow")[0].message


def test_finds_missing_deployments(copied: Any, run: Callable[..., Result]) -> None:
    assert any("no deployments" in it.message for it in found("schedules"))
    result = run(command)
    assert result.exit_code == 1
    assert "microseg serve" in result.stdout
    assert "found an error" in " ".join(result.stderr.split())


def test_finds_a_moved_home_and_files_outside_the_home(copied: Any, tmp_path: Path) -> None:
    findings = found("home")
    assert [it.level for it in findings] == ["warning", "ok"]
    assert "was moved or copied from" in findings[0].message
    assert [it.level for it in found("home")] == ["ok"]  # its addresses were updated
    with sqlite3.connect(copied.home / "mlflow" / "mlflow.db") as connection:
        connection.execute("UPDATE runs SET artifact_uri = ?", ((tmp_path / "elsewhere").as_uri(),))
    assert [it.level for it in found("home")] == ["error", "ok"]
    assert "elsewhere" in found("home")[0].message


def test_a_missing_home_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICROSEG_HOME", str(tmp_path / "absent"))
    [finding] = found("home")
    assert (finding.level, "No microseg home at" in finding.message) == ("warning", True)
    assert not list(tmp_path.iterdir())
