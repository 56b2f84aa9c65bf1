"""`microseg status`: production, labs and batches."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from flows.health import status
from flows.health.status import _may_have_server

Run = Callable[..., Result]


def read(run: Run) -> dict[str, Any]:
    result = run(status.command, "--json")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def test_shows_production_and_labs(done: Any, run: Run) -> None:
    values = read(run)
    assert (values["production"], values["pending"]) == (2, [])
    labs = {lab["lab"]: lab for lab in values["labs"]}
    assert {name: (lab["versions"], lab["production"], lab["own"]) for name, lab in labs.items()} == {
        "lab_a": (2, 2, False),
        "lab_b": (1, 2, False),
    }
    assert labs["lab_b"]["digest"] == done.ingested["lab_b"].digest
    shown = run(status.command).stdout
    assert "Production: version 2 is active" in shown
    assert f"{done.home} (MICROSEG_HOME)" in shown


def test_shows_a_version_for_one_lab_and_a_pending_alias_change(copied: Any, run: Run) -> None:
    copied.registry.production.promote(1)
    copied.registry.production.promote(2, alias="production-lab_b")
    copied.registry.versions.set_alias("production", 2)
    values = read(run)
    labs = {lab["lab"]: (lab["production"], lab["own"]) for lab in values["labs"]}
    assert labs == {"lab_a": (1, False), "lab_b": (2, True)}
    assert values["pending"] == ["production: version 2 requested (mlflow), 1 active"]
    assert "Validate it: microseg service validate-promotion" in " ".join(run(status.command).stdout.split())


def test_shows_an_empty_home(fresh: Path, run: Run) -> None:
    values = read(run)
    assert (values["production"], values["labs"]) == (None, [])


@pytest.mark.parametrize(
    ("files", "variables", "expected"),
    [
        ({}, {}, False),
        ({}, {"PREFECT_API_URL": "http://127.0.0.1:1/api"}, True),
        ({}, {"prefect_profile": "lab"}, True),
        ({"prefect.toml": ""}, {}, True),
        ({".env": "PREFECT_API_URL=http://127.0.0.1:1/api"}, {}, True),
        ({"pyproject.toml": '[project]\ndependencies = [\n    "prefect>=3",\n]'}, {}, False),
        ({"pyproject.toml": '[tool.prefect]\napi.url = "http://127.0.0.1:1/api"'}, {}, True),
        ({"pyproject.toml": '[tool]\nprefect.api.url = "http://127.0.0.1:1/api"'}, {}, True),
        ({"home/profiles.toml": ""}, {}, True),
    ],
)
def test_prefect_is_asked_wherever_its_address_may_be_set(
    tmp_path: Path, files: dict[str, str], variables: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for name in [name for name in os.environ if name.upper().startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    for name, value in {"PREFECT_HOME": str(tmp_path / "home"), **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "prefect", raising=False)
    assert _may_have_server() is expected
