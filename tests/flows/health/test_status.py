"""What is shown of production, labs and batches."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import Result

from flows.health import status

Run = Callable[..., Result]


def told(run: Run) -> dict[str, Any]:
    result = run(status.command, "--json")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def test_after_the_main_job(done: Any, run: Run) -> None:
    said = told(run)
    assert (said["production"], said["candidate"], said["pending"]) == (2, None, [])
    labs = {lab["lab"]: lab for lab in said["labs"]}
    assert {name: (lab["versions"], lab["production"], lab["own"]) for name, lab in labs.items()} == {
        "lab_a": (2, 2, False),
        "lab_b": (1, 2, False),
    }
    assert labs["lab_b"]["digest"] == done.ingested["lab_b"].digest
    shown = run(status.command).stdout
    assert "In production: version 2; candidate: none" in shown


def test_a_lab_of_its_own_and_a_moved_alias(copied: Any, run: Run) -> None:
    copied.registry.production.promote(1)
    copied.registry.production.promote(2, alias="production-lab_b")
    copied.registry.versions.set_alias("production", 2)
    said = told(run)
    labs = {lab["lab"]: (lab["production"], lab["own"]) for lab in said["labs"]}
    assert labs == {"lab_a": (2, False), "lab_b": (2, True)}
    assert said["pending"] == ["production: version 2 requested (mlflow), 1 active"]
    assert "microseg service validate-promotion does that" in " ".join(run(status.command).stdout.split())


def test_an_empty_home(fresh: Path, run: Run) -> None:
    said = told(run)
    assert (said["production"], said["labs"]) == (None, [])
