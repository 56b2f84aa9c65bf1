"""What fails silently is found, each with its remedy. `test_service.py` has it look at real servers."""

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from flows.health import machine
from flows.health.doctor import command, run_checks
from flows.health.finding import Finding
from microseg.config.settings import load_settings

Usage = namedtuple("Usage", "total used free")


def found(subject: str) -> list[Finding]:
    return [finding for finding in run_checks(load_settings()) if finding.subject == subject]


def test_a_home_in_order(copied: Any) -> None:
    findings = run_checks(load_settings())
    faults = [finding for finding in findings if finding.level == "error" and finding.subject != "schedules"]
    assert faults == []
    assert {finding.subject for finding in findings} >= {"fastapi", "sqlalchemy", "home", "disk", "MLflow", "aliases"}
    assert "version 2 is in production" in {finding.sentence for finding in findings}


@pytest.mark.parametrize(
    ("package", "version", "said"),
    [
        ("fastapi", "0.155.0", "Prefect 3.8 does not start"),
        ("sqlalchemy", "2.1.0", "never creates a scheduled run"),
        ("mlflow", "2.20.0", "no word of moved aliases"),
    ],
)
def test_versions_that_fail_silently(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str, version: str, said: str
) -> None:
    real = machine.version
    monkeypatch.setattr(machine, "version", lambda name: version if name == package else real(name))
    [finding] = [it for it in machine.packages(load_settings()) if it.subject == package]
    assert (finding.level, said in finding.sentence) == ("error", True)
    assert finding.remedy.startswith(f"pip install '{package}")


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("0.150.2", "<0.151", True),
        ("0.151.0", "<0.151", False),
        ("3.10.0", ">=3.8.8,<4", True),
        ("4.0", ">=3,<4", False),
    ],
)
def test_versions_are_compared_as_numbers(version: str, wanted: str, fits: bool) -> None:
    assert machine._within(version, wanted) == fits


def test_no_room(copied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _place: Usage(10, 10, 1_000_000_000))
    assert {(it.level, it.sentence.partition(" are")[0]) for it in found("disk")} == {("error", "1 GB")}


@pytest.mark.parametrize(
    ("alias", "level", "said"),
    [
        ("Production", "error", "puts nothing into production"),
        ("prod", "error", "puts nothing into production"),
        ("production-lab_x", "warning", "there is no lab 'lab_x'"),
        ("production-lab_b", "warning", "pending alias change"),
    ],
)
def test_spelling_of_aliases(copied: Any, alias: str, level: str, said: str) -> None:
    copied.registry.versions.set_alias(alias, 1)
    assert any(it.level == level and said in it.sentence for it in found("aliases"))


def test_secrets_that_others_can_read(copied: Any) -> None:
    assert load_settings().environment.webhook_secret
    assert found("secrets") == []
    (copied.home / "secrets" / "webhook-secret").chmod(0o644)
    assert found("secrets")[0].level == "error"


def test_a_remote_that_cannot_be_written(copied: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {it.level for it in found("DVC remote")} == {"warning"}  # on the same disk
    (tmp_path / "a file").touch()
    monkeypatch.setenv("MICROSEG_DVC_REMOTE", str(tmp_path / "a file" / "remote"))
    assert {it.level for it in found("DVC remote")} == {"error"}
    monkeypatch.setenv("MICROSEG_DVC_REMOTE", "nonsense://store")
    assert {it.level for it in found("DVC remote")} == {"error"}


def test_a_registry_that_cannot_be_reached(copied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert "no server answers there" in found("MLflow")[0].sentence


def test_flows_that_are_not_registered(copied: Any, run: Callable[..., Result]) -> None:
    assert any("not registered" in it.sentence for it in found("schedules"))
    result = run(command)
    assert result.exit_code == 1
    assert "microseg serve" in result.stdout
    assert "are faults" in " ".join(result.stderr.split())
