"""A version promoted elsewhere is looked at, settled or put back; and the history tells all of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import Result

from flows import rollback, validate_promotion
from flows.health import history
from flows.promote import promote
from microseg.api.validation import ValidationCheck
from microseg.errors import RegistryError
from microseg.registry.history import AuditInfo
from microseg.registry.production import BY_TAG, REASON_TAG
from microseg.registry.registry import Registry
from microseg.registry.version import MODEL_NAME, PRODUCTION

Run = Callable[..., Result]
LAB_B = "production-lab_b"


def validate(alias: str | None = None) -> Any:
    return validate_promotion.validate_promotion(alias, return_state=True)


def newest(job: Any) -> tuple[Any, ...]:
    entry = job.registry.history()[0]
    return entry.alias, entry.action, entry.before, entry.version, entry.state, entry.cause.gate, entry.cause.via


def test_the_main_job_left_its_history(done: Any) -> None:
    entries = done.registry.history()
    assert [(it.before, it.version, it.cause.gate) for it in entries] == [(1, 2, "accepted"), (None, 1, "accepted")]
    assert all(it.cause.by and it.cause.via == "command" for it in entries)
    assert done.registry.pending_changes() == ()


def test_nothing_was_moved(copied: Any) -> None:
    state = validate()
    assert state.is_completed()
    assert state.message.startswith("Nothing to do")
    assert len(copied.registry.history()) == 2


def test_a_version_promoted_by_hand_is_settled(copied: Any) -> None:
    """Version 1 was accepted by the gate in its time."""
    copied.registry.set_tags(1, {BY_TAG: "ann", REASON_TAG: "the study began with it"})
    copied.registry.set_alias(PRODUCTION, 1)
    state = validate(PRODUCTION)
    assert state.is_completed(), state.message
    assert "Version 1 is in production" in state.message
    assert copied.aliases == {"production": 1, "previous": 2}
    assert newest(copied) == (PRODUCTION, "promoted", 2, 1, "done", "accepted", "mlflow")
    assert copied.registry.history()[0].cause.by == "ann"
    assert copied.registry.history()[0].cause.reason == "the study began with it"
    assert validate(PRODUCTION).message.startswith("Nothing to do")


def test_a_person_may_override_the_gate(copied: Any) -> None:
    copied.registry.rollback()
    copied.registry.set_tags(2, {"gate": "refused", "gate_refusals": '["Lost much."]'})
    copied.registry.set_alias(PRODUCTION, 2)
    state = validate()
    assert state.is_completed()
    assert "The gate had refused it: Lost much." in state.message
    assert newest(copied)[5] == "refused, overridden"
    assert copied.registry.history()[0].cause.reason == "Lost much."


def test_a_version_of_another_making_is_put_back(copied: Any, tmp_path: Path) -> None:
    client = mlflow.MlflowClient(tracking_uri=copied.registry.tracking_uri, registry_uri=copied.registry.tracking_uri)
    (tmp_path / "else").mkdir()
    client.create_model_version(MODEL_NAME, source=(tmp_path / "else").as_uri())
    client.set_registered_model_alias(MODEL_NAME, PRODUCTION, "3")
    state = validate()
    assert state.is_failed()
    assert "Version 3 was refused, version 2 stays in production" in state.message
    assert copied.aliases == {"production": 2, "previous": 1}
    assert newest(copied) == (PRODUCTION, "refused", 2, 3, "failed", "not asked", "mlflow")
    assert copied.registry.resolve(3).description.startswith("NOT IN PRODUCTION: ")
    assert "was never judged" in copied.registry.resolve(3).description


def test_what_was_in_production_before_there_was_a_history_stays(fresh: Path, job: Any) -> None:
    """As after an update of microseg."""
    database = fresh / "mlflow" / "mlflow.db"
    shutil.copy(job.home / "mlflow" / "mlflow.db", database)
    client = mlflow.MlflowClient(f"sqlite:///{database}", f"sqlite:///{database}")
    experiment = client.get_experiment_by_name("microseg-promotions").experiment_id
    for run in client.search_runs([experiment]):
        client.delete_run(run.info.run_id)
    for tag in ("gate", "gate_against", "gate_refusals"):
        client.delete_model_version_tag(MODEL_NAME, "2", tag)
        client.delete_model_version_tag(MODEL_NAME, "1", tag)
    registry = Registry(f"sqlite:///{database}")
    assert registry.history() == ()
    state = validate()
    assert state.is_completed(), state.message
    assert registry.resolve(PRODUCTION).version == 2
    assert [(it.version, it.cause.gate) for it in registry.history()] == [(2, "not asked")]
    registry.set_alias(PRODUCTION, 1)
    assert validate().is_failed()  # from now on a version must have been judged
    assert registry.resolve(PRODUCTION).version == 2


def test_a_lab_of_its_own(copied: Any) -> None:
    copied.registry.set_alias(LAB_B, 1)
    assert validate(PRODUCTION).message.startswith("Nothing to do")
    assert validate(LAB_B).is_completed()
    assert newest(copied)[:4] == (LAB_B, "promoted", None, 1)
    assert copied.registry.in_use().version == 2


def test_a_removed_alias(copied: Any) -> None:
    copied.registry.remove_alias(PRODUCTION)
    assert validate().is_completed()
    assert newest(copied)[:5] == (PRODUCTION, "withdrawn", 2, None, "done")


def test_the_command_of_a_refusal(copied: Any, run: Run) -> None:
    copied.registry.rollback()
    client = mlflow.MlflowClient(tracking_uri=copied.registry.tracking_uri, registry_uri=copied.registry.tracking_uri)
    for tag in ("gate", "gate_against", "gate_refusals"):
        client.delete_model_version_tag(MODEL_NAME, "2", tag)
    copied.registry.set_alias(PRODUCTION, 2)
    result = run(validate_promotion.command)
    assert result.exit_code == 1
    assert "microseg evaluate 2" in " ".join(result.stderr.split())
    assert copied.aliases == {"production": 1}


# ---- by command


def test_overriding_by_command(copied: Any) -> None:
    copied.registry.rollback()
    assert not promote("2", changes=("gate.min_criterion_gain=1.0",)).accepted
    record = promote("2", override="looked at it", by="ann", changes=("gate.min_criterion_gain=1.0",))
    assert (record.accepted, record.production) == (True, 2)
    entry = copied.registry.history()[0]
    assert entry.cause == AuditInfo("ann", "command", "refused, overridden", "looked at it")


def test_for_one_lab_alone_the_others_losses_do_not_count(copied: Any) -> None:
    copied.registry.rollback()
    record = promote("2", lab="lab_b", changes=("gate.max_source_loss=0.0", "gate.min_criterion_gain=-1.0",
                     "gate.min_foreground_ratio=1e-9", "gate.max_foreground_ratio=1e9"))  # fmt: skip
    assert record.accepted
    assert (copied.registry.in_use().version, copied.registry.in_use("lab_b").version) == (1, 2)
    assert newest(copied)[:4] == (LAB_B, "promoted", None, 2)


def test_rolling_back_by_command(copied: Any, run: Run) -> None:
    result = run(rollback.command, "--reason", "glands cut in two")
    assert result.exit_code == 0, result.output
    assert "Rolled back from version 2 to version 1." in result.stdout
    assert newest(copied)[:5] == (PRODUCTION, "rolled back", 2, 1, "done")
    assert copied.registry.history()[0].cause.reason == "glands cut in two"


def test_the_history_is_printed(done: Any, run: Run) -> None:
    said = run(history.command).stdout
    assert "promoted" in said
    entries = json.loads(run(history.command, "--json").stdout)
    assert [(it["before"], it["version"]) for it in entries] == [(1, 2), (None, 1)]
    assert json.loads(run(history.command, "--json", "--lab", "lab_b").stdout) == []


def test_an_empty_history(fresh: Path, run: Run) -> None:
    assert "Nothing was ever promoted" in run(history.command).stdout


def test_what_is_not_fit_is_not_promoted(copied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    copied.registry.rollback()
    promote("2", changes=("gate.min_criterion_gain=1.0",))  # judged, and refused
    unfit = (ValidationCheck("smoke image", False, "It cannot segment an image."),)
    monkeypatch.setattr(validate_promotion, "validate_version", lambda *_, **__: unfit)
    with pytest.raises(RegistryError, match="not fit for production: It cannot segment"):
        promote("2", override="all the same", changes=("gate.min_criterion_gain=1.0",))
    assert copied.aliases == {"production": 1}
    assert newest(copied)[1] == "rolled back"
