"""Validation of promotions made in MLflow, promotion and rollback by command, and the history."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import Result

from flows import promote as promote_module
from flows import rollback, validate_promotion
from flows.evidence import evaluation_folder, evidence_key, read_comparison
from flows.health import history
from flows.health.status import read_status
from flows.promote import promote
from flows.workspace import open_workspace
from microseg.config.settings import load_settings
from microseg.errors import RegistryError
from microseg.registry.decision import NOT_MET, RuleResult
from microseg.registry.history import HISTORY_MODEL
from microseg.registry.production import BY_TAG, REASON_TAG, AuditInfo
from microseg.registry.registry import Registry
from microseg.registry.version import MODEL_NAME, PRODUCTION
from tests.flows.conftest import LENIENT, REVIEW, STRICT

Run = Callable[..., Result]
LAB_B = "production-lab_b"


def validate(alias: str | None = None, changes: tuple[str, ...] = ()) -> Any:
    return validate_promotion.validate_promotion(alias, changes, return_state=True)


def client_of(job: Any) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri=job.registry.tracking_uri, registry_uri=job.registry.tracking_uri)


def remove_evidence(job: Any) -> None:
    """As if version 2 had been compared with another version only."""
    for tag in job.registry.versions.find(2).tags:
        if tag.startswith("evidence."):
            client_of(job).delete_model_version_tag(MODEL_NAME, "2", tag)


def newest(job: Any) -> tuple[Any, ...]:
    entry = job.registry.production.history()[0]
    return (
        entry.alias,
        entry.action,
        entry.previous_version,
        entry.version,
        entry.state,
        entry.audit.gate,
        entry.audit.via,
    )


def test_history_of_the_main_job(done: Any) -> None:
    entries = done.registry.production.history()
    assert [(it.previous_version, it.version, it.audit.gate) for it in entries] == [
        (1, 2, "accepted"),
        (None, 1, "accepted"),
    ]
    assert all(it.audit.by and it.audit.via == "command" for it in entries)
    assert done.registry.production.pending_changes() == ()


def test_nothing_is_pending(copied: Any) -> None:
    state = validate()
    assert state.is_completed()
    assert state.message.startswith("Nothing to do")
    assert len(copied.registry.production.history()) == 2


def test_version_promoted_in_mlflow_is_applied(copied: Any) -> None:
    """A person rolls back in MLflow."""
    copied.registry.versions.set_tags(1, {BY_TAG: "ann", REASON_TAG: "the study began with it"})
    copied.registry.versions.set_alias(PRODUCTION, 1)
    state = validate(PRODUCTION)
    assert state.is_completed(), state.message
    assert "Version 1 is in production" in state.message
    assert copied.aliases == {"production": 1, "previous": 2}
    assert newest(copied) == (PRODUCTION, "promoted", 2, 1, "done", "not evaluated", "mlflow")
    assert copied.registry.production.history()[0].audit.by == "ann"
    assert copied.registry.production.history()[0].audit.reason == "the study began with it"
    assert validate(PRODUCTION).message.startswith("Nothing to do")


def test_refused_version_promoted_in_mlflow_is_overridden(copied: Any) -> None:
    """Its page showed the comparison with the version in production."""
    copied.registry.production.roll_back()
    copied.registry.versions.set_alias(PRODUCTION, 2)
    state = validate(changes=STRICT)
    assert state.is_completed(), state.message
    assert "The gate had refused it. On the " in state.message
    assert newest(copied)[5] == "overridden"
    assert copied.registry.production.history()[0].audit.reason.startswith("On the ")


def test_version_that_was_not_compared_with_production_is_compared_first(copied: Any) -> None:
    """A verdict against another version does not count. The person sees the new one, and may then insist."""
    copied.registry.production.roll_back()
    remove_evidence(copied)
    copied.registry.versions.set_alias(PRODUCTION, 2)
    state = validate(changes=STRICT)
    assert state.is_failed()
    assert "The gate refused it against version 1." in state.message
    assert "to promote it all the same, set the alias again" in state.message
    assert newest(copied) == (PRODUCTION, "reverted", 1, 2, "failed", "refused", "mlflow")
    assert copied.aliases == {"production": 1}
    copied.registry.versions.set_alias(PRODUCTION, 2)
    assert validate(changes=STRICT).is_completed()
    assert newest(copied) == (PRODUCTION, "promoted", 1, 2, "done", "overridden", "mlflow")


def test_version_that_was_not_compared_is_applied_if_the_gate_accepts_it(copied: Any) -> None:
    copied.registry.production.roll_back()
    remove_evidence(copied)
    copied.registry.versions.set_alias(PRODUCTION, 2)
    assert validate(changes=LENIENT).is_completed()
    assert newest(copied) == (PRODUCTION, "promoted", 1, 2, "done", "accepted", "mlflow")


def test_gate_states_the_lab_that_a_promotion_would_lose(copied: Any) -> None:
    """Version 1 was not adapted to lab_b, version 2 was."""
    decision = promote("1", changes=LENIENT)
    assert not decision.promoted
    assert "adapted to, lab_b, and this candidate was not: promoting it would lose lab_b" in decision.reasons[-1]
    assert copied.aliases == {"production": 2, "previous": 1}
    assert "would lose lab_b" in copied.registry.versions.find(1).description


def test_local_file_of_another_comparison_decides_nothing(copied: Any) -> None:
    """As after another registry's home was used, or an evaluation on another lab."""
    settings = load_settings()
    workspace = open_workspace(settings)
    versions = copied.registry.versions
    first, second = versions.find(1), versions.find(2)
    file = evaluation_folder(evidence_key(workspace, second, first, "lab_b"), settings) / "comparison.json"
    true = read_comparison(second, first, settings)
    assert true is not None
    assert file.is_file()  # the verified copy
    file.write_text(file.read_text().replace('"candidate"', '"candidate" '))
    assert read_comparison(second, first, settings) == true
    assert '"candidate" ' not in file.read_text()  # fetched again
    assert read_comparison(second, first, settings, "lab_a") is None  # evaluated on lab_b only
    assert read_comparison(first, second, settings) is None
    remove_evidence(copied)  # as in another registry
    assert read_comparison(second, first, settings) is None


def test_alias_that_resembles_production_is_reported(copied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[Any, ...]] = []
    monkeypatch.setattr(validate_promotion, "notify", lambda *event, identity: events.append(event))
    copied.registry.versions.set_alias("Production", 1)
    copied.registry.versions.set_alias("production-lab_x", 1)
    state = validate()
    assert state.is_failed()
    assert "The alias 'Production' changes nothing" in state.message
    assert "no lab 'lab_x' is known" in state.message
    assert copied.registry.versions.find(1).description.startswith("ALIAS NOT KNOWN: ")
    assert [(name, payload["alias"]) for name, _, payload in events] == [
        ("microseg.promotion.reverted", "production-lab_x"),
        ("microseg.promotion.reverted", "Production"),
    ]
    assert validate().message.startswith("Nothing to do")
    assert copied.registry.production.active().version == 2


def test_status_tells_requested_from_active(copied: Any) -> None:
    copied.registry.versions.set_alias(PRODUCTION, 1)
    status = read_status(load_settings())
    assert status.production == 2
    assert status.pending == ["production: version 1 requested (mlflow), 2 active"]
    assert all(lab.production == 2 for lab in status.labs)


def test_person_decides_in_mlflow_where_the_gate_cannot_tell(copied: Any) -> None:
    copied.registry.production.roll_back()
    copied.registry.versions.set_tags(2, {BY_TAG: "ann"})
    copied.registry.versions.set_alias(PRODUCTION, 2)
    state = validate(changes=REVIEW)
    assert state.is_completed(), state.message
    assert "The gate could not tell: a person promoted it. The candidate marks" in state.message
    assert copied.aliases == {"production": 2, "previous": 1}
    assert newest(copied)[5] == "needs review"
    assert copied.registry.production.history()[0].audit.by == "ann"
    first = copied.registry.versions.find(2).description.splitlines()[0]
    assert first.startswith("PROMOTED BY A PERSON, THE GATE COULD NOT TELL: by ann. The candidate marks")


def test_version_of_other_software_is_reverted(copied: Any, tmp_path: Path) -> None:
    client = mlflow.MlflowClient(tracking_uri=copied.registry.tracking_uri, registry_uri=copied.registry.tracking_uri)
    (tmp_path / "else").mkdir()
    client.create_model_version(MODEL_NAME, source=(tmp_path / "else").as_uri())
    client.set_registered_model_alias(MODEL_NAME, PRODUCTION, "3")
    state = validate()
    assert state.is_failed()
    assert "Version 3 was reverted, version 2 stays in production" in state.message
    assert copied.aliases == {"production": 2, "previous": 1}
    assert newest(copied) == (PRODUCTION, "reverted", 2, 3, "failed", "not evaluated", "mlflow")
    assert copied.registry.versions.find(3).description.startswith("NOT IN PRODUCTION: ")


def test_version_in_production_before_the_history_stays(fresh: Path, job: Any) -> None:
    """As after an update of microseg."""
    database = fresh / "mlflow" / "mlflow.db"
    shutil.copy(job.home / "mlflow" / "mlflow.db", database)
    client = mlflow.MlflowClient(f"sqlite:///{database}", f"sqlite:///{database}")
    client.delete_registered_model(HISTORY_MODEL)
    for tag in ("gate", "gate.production_version", "gate.rules"):
        client.delete_model_version_tag(MODEL_NAME, "2", tag)
        client.delete_model_version_tag(MODEL_NAME, "1", tag)
    registry = Registry(f"sqlite:///{database}")
    assert registry.production.history() == ()
    state = validate()
    assert state.is_completed(), state.message
    assert registry.versions.find(PRODUCTION).version == 2
    assert [(it.version, it.audit.gate) for it in registry.production.history()] == [(2, "not evaluated")]
    registry.versions.set_alias(PRODUCTION, 1)
    assert validate().is_failed()  # from now on the gate must have been evaluated
    assert registry.versions.find(PRODUCTION).version == 2


def test_version_of_one_lab(copied: Any) -> None:
    copied.registry.versions.set_alias(LAB_B, 1)
    assert validate(PRODUCTION).message.startswith("Nothing to do")
    assert copied.registry.production.active("lab_b").version == 2
    assert validate(LAB_B, LENIENT).is_completed()
    assert newest(copied)[:4] == (LAB_B, "promoted", None, 1)
    assert copied.registry.production.active().version == 2


def test_removed_alias_is_recorded(copied: Any) -> None:
    copied.registry.versions.remove_alias(PRODUCTION)
    assert validate().is_completed()
    assert newest(copied)[:5] == (PRODUCTION, "removed", 2, None, "done")


def test_command_fails_if_a_promotion_is_reverted(copied: Any, run: Run) -> None:
    copied.registry.production.roll_back()
    remove_evidence(copied)
    copied.registry.versions.set_alias(PRODUCTION, 2)
    result = run(validate_promotion.command, "--set", STRICT[0])
    assert result.exit_code == 1
    assert "Version 2 was reverted, version 1 stays in production." in " ".join(result.stderr.split())
    assert copied.aliases == {"production": 1}


# ---- by command


def test_override_by_command(copied: Any) -> None:
    copied.registry.production.roll_back()
    assert not promote("2", changes=("gate.min_criterion_gain=1.0",)).promoted
    decision = promote("2", override="needed for a study", by="ann", changes=("gate.min_criterion_gain=1.0",))
    assert (decision.verdict, decision.promoted, decision.production_version) == ("refused", True, 1)
    entry = copied.registry.production.history()[0]
    assert entry.audit == AuditInfo("ann", "command", "overridden", "needed for a study")


def test_command_promotes_what_the_gate_cannot_tell_only_with_a_reason(copied: Any, run: Run) -> None:
    copied.registry.production.roll_back()
    options = [part for change in REVIEW for part in ("--set", change)]
    result = run(promote_module.command, "2", *options)
    text = " ".join(result.stderr.split())
    assert result.exit_code == 1
    assert "The gate cannot tell whether it is better than version 1: a person must look. Next: look at both" in text
    assert "otherwise nothing needs to be done: version 1 stays in production" in text
    assert "microseg promote 2 --override REASON" in text
    assert "? The candidate marks" in result.stdout
    assert copied.aliases == {"production": 1}
    assert copied.registry.versions.find(2).tags["gate"] == "needs review"
    assert "## Needs review: the gate cannot tell" in copied.registry.versions.find(2).description
    assert (
        next(lab for lab in read_status(load_settings()).labs if lab.lab == "lab_b").candidate is None
    )  # promoted once

    result = run(promote_module.command, "2", "--override", "outlines compared", *options)
    assert result.exit_code == 0, result.output
    assert "Promoted by a person: outlines compared" in result.stdout
    assert copied.aliases == {"production": 2, "previous": 1}
    assert newest(copied)[5:] == ("needs review", "command")
    entry = copied.registry.production.history()[0]
    assert str(entry).endswith("The gate could not tell: a person promoted it. outlines compared")
    shown = run(history.command).stdout.split()  # the table wraps the words
    assert {"needs", "review"} <= set(shown)


def test_loss_on_other_labs_is_ignored_for_one_lab(copied: Any) -> None:
    copied.registry.production.roll_back()
    record = promote("2", lab="lab_b", changes=(*LENIENT, "gate.max_source_loss=0.0"))
    assert record.verdict == "accepted"
    assert (copied.registry.production.active().version, copied.registry.production.active("lab_b").version) == (1, 2)
    assert newest(copied)[:4] == (LAB_B, "promoted", None, 2)


def test_rollback_by_command(copied: Any, run: Run) -> None:
    result = run(rollback.command, "--reason", "glands cut in two")
    assert result.exit_code == 0, result.output
    assert "Rolled back from version 2 to version 1." in result.stdout
    assert newest(copied)[:5] == (PRODUCTION, "rolled back", 2, 1, "done")
    assert copied.registry.production.history()[0].audit.reason == "glands cut in two"


def test_history_is_printed(done: Any, run: Run) -> None:
    assert "production" in run(history.command).stdout
    entries = json.loads(run(history.command, "--json").stdout)
    assert [(it["previous_version"], it["version"]) for it in entries] == [(1, 2), (None, 1)]
    assert json.loads(run(history.command, "--json", "--lab", "lab_b").stdout) == []


def test_empty_history(fresh: Path, run: Run) -> None:
    assert "The history is empty" in run(history.command).stdout


def test_invalid_version_is_not_promoted(copied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    copied.registry.production.roll_back()
    promote("2", changes=("gate.min_criterion_gain=1.0",))  # evaluated, and refused
    invalid = (RuleResult(NOT_MET, "test image", "It cannot segment an image."),)
    monkeypatch.setattr("microseg.api.validation.validate_version", lambda *_, **__: invalid)
    with pytest.raises(RegistryError, match="not valid for production: It cannot segment"):
        promote("2", override="needed", changes=("gate.min_criterion_gain=1.0",))
    assert copied.aliases == {"production": 1}
    assert newest(copied)[1] == "rolled back"
