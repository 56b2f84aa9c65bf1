"""Promotions, rollbacks, pending alias changes and their history."""

from datetime import UTC, datetime, timedelta

import mlflow
import pytest

from microseg.errors import RegistryError, VersionNotFoundError
from microseg.registry.production import BY_TAG, HISTORY_EXPERIMENT, REASON_TAG, AuditInfo, PendingAliasChange
from microseg.registry.registry import Registry
from microseg.registry.version import CANDIDATE, MODEL_NAME, PREVIOUS, PRODUCTION

LAB_B = "production-lab_b"


def client_of(registry: Registry) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri=registry.tracking_uri, registry_uri=registry.tracking_uri)


def aliases(registry: Registry) -> dict[str, int]:
    return {alias: version.version for version in registry.versions.all() for alias in version.aliases}


def entries(registry: Registry, alias: str | None = None) -> list[tuple[str, str, int | None, int | None, str]]:
    return [
        (it.alias, it.action, it.previous_version, it.version, it.state) for it in registry.production.history(alias)
    ]


def test_promote_and_roll_back(registry: Registry) -> None:
    registry.versions.set_alias(CANDIDATE, 1)
    assert registry.production.promote(CANDIDATE).aliases == (PRODUCTION,)
    assert aliases(registry) == {PRODUCTION: 1}  # a first version has no previous one
    registry.versions.set_alias(CANDIDATE, 2)
    assert registry.production.promote(2).version == 2
    assert aliases(registry) == {PRODUCTION: 2, PREVIOUS: 1}
    assert registry.production.roll_back().version == 1
    assert aliases(registry) == {PRODUCTION: 1}
    with pytest.raises(VersionNotFoundError, match="nothing to roll back to"):
        registry.production.roll_back()
    assert aliases(registry) == {PRODUCTION: 1}


def test_promoting_twice_keeps_previous(registry: Registry) -> None:
    registry.production.promote(1)
    registry.production.promote(2)
    registry.versions.set_alias(CANDIDATE, 2)
    registry.production.promote(2)
    assert aliases(registry) == {PRODUCTION: 2, PREVIOUS: 1}


def test_promoting_previous_swaps_both(registry: Registry) -> None:
    registry.production.promote(1)
    registry.production.promote(2)
    registry.production.promote(PREVIOUS)
    assert aliases(registry) == {PRODUCTION: 1, PREVIOUS: 2}


def test_alias_candidate_of_another_version_stays(registry: Registry) -> None:
    registry.versions.set_alias(CANDIDATE, 2)
    registry.production.promote(1)
    assert aliases(registry) == {PRODUCTION: 1, CANDIDATE: 2}


# ---- history


def test_promotion_is_recorded(registry: Registry) -> None:
    began = datetime.now(UTC)
    registry.production.promote(1, audit=AuditInfo("ann", "command", "accepted", "The first."))
    [entry] = registry.production.history()
    assert (entry.alias, entry.action, entry.previous_version, entry.version, entry.active_version) == (
        PRODUCTION,
        "promoted",
        None,
        1,
        1,
    )
    assert entry.audit == AuditInfo("ann", "command", "accepted", "The first.")
    assert began - timedelta(seconds=1) < entry.time < datetime.now(UTC)


def test_history_lists_the_newest_first(registry: Registry) -> None:
    registry.production.promote(1)
    registry.production.promote(2)
    registry.production.roll_back(audit=AuditInfo(reason="worse"))
    assert entries(registry) == [
        (PRODUCTION, "rolled back", 2, 1, "done"),
        (PRODUCTION, "promoted", 1, 2, "done"),
        (PRODUCTION, "promoted", None, 1, "done"),
    ]
    assert registry.production.history()[0].audit.reason == "worse"
    assert registry.production.pending_changes() == ()


def test_promoting_the_active_version_adds_no_entry(registry: Registry) -> None:
    registry.production.promote(1)
    registry.versions.set_alias(CANDIDATE, 1)
    registry.production.promote(1)
    assert len(registry.production.history()) == 1
    assert aliases(registry) == {PRODUCTION: 1}


def test_alias_change_is_pending_until_promoted(registry: Registry) -> None:
    assert registry.production.pending_changes() == ()
    registry.production.promote(1)
    assert registry.production.pending_changes() == ()
    client_of(registry).set_registered_model_alias(MODEL_NAME, PRODUCTION, "2")  # as a click in MLflow's page does
    assert registry.production.pending_changes() == (PendingAliasChange(PRODUCTION, 2, 1, "mlflow"),)
    registry.production.promote(2, alias=PRODUCTION, audit=AuditInfo(via="mlflow"))
    assert registry.production.pending_changes() == ()
    assert aliases(registry) == {PRODUCTION: 2, PREVIOUS: 1}
    assert entries(registry)[0] == (PRODUCTION, "promoted", 1, 2, "done")


def test_alias_without_history_is_pending(registry: Registry) -> None:
    registry.versions.set_alias(PRODUCTION, 1)
    assert registry.production.pending_changes() == (PendingAliasChange(PRODUCTION, 1, None, "mlflow"),)
    registry.production.promote(2)
    assert aliases(registry) == {PRODUCTION: 2, PREVIOUS: 1}
    assert registry.production.pending_changes() == ()


def test_reverted_version_states_the_reason(registry: Registry) -> None:
    registry.production.promote(1)
    registry.versions.set_alias(PRODUCTION, 2)
    [change] = registry.production.pending_changes()
    back = registry.production.revert(
        change, "It was\nnot evaluated.", audit=AuditInfo(via="mlflow", reason="not evaluated")
    )
    assert back is not None
    assert back.version == 1
    assert aliases(registry) == {PRODUCTION: 1}
    assert entries(registry)[0] == (PRODUCTION, "reverted", 1, 2, "failed")
    assert registry.production.history()[0].active_version == 1
    assert registry.production.pending_changes() == ()
    assert registry.versions.find(2).description == "NOT IN PRODUCTION: It was not evaluated.\n\nSecond."
    registry.versions.set_alias(PRODUCTION, 2)
    registry.production.revert(registry.production.pending_changes()[0], "Still not.")
    assert registry.versions.find(2).description == "NOT IN PRODUCTION: Still not.\n\nSecond."
    registry.production.promote(2)
    assert registry.versions.find(2).description == "Second."


def test_version_promoted_against_the_gate_has_a_note(registry: Registry) -> None:
    registry.production.promote(1)
    registry.production.promote(2, audit=AuditInfo("ann", gate="overridden", reason="Reviewed\nby eye."))
    assert registry.versions.find(2).description == "PROMOTED AGAINST THE GATE: by ann. Reviewed by eye.\n\nSecond."
    registry.production.promote(1)
    registry.production.promote(2, audit=AuditInfo("ann", gate="needs review", reason="Compared."))
    description = registry.versions.find(2).description
    assert description == "PROMOTED BY A PERSON, THE GATE COULD NOT TELL: by ann. Compared.\n\nSecond."
    registry.production.promote(2, audit=AuditInfo("ann", gate="accepted"))
    assert registry.versions.find(2).description == "Second."


def test_reverted_first_version_leaves_no_production(registry: Registry) -> None:
    registry.versions.set_alias(PRODUCTION, 1)
    assert registry.production.revert(registry.production.pending_changes()[0], "no") is None
    assert aliases(registry) == {}
    assert registry.production.pending_changes() == ()


def test_removed_alias_can_be_rolled_back_to(registry: Registry) -> None:
    registry.production.promote(1)
    registry.versions.remove_alias(PRODUCTION)
    [change] = registry.production.pending_changes()
    assert change == PendingAliasChange(PRODUCTION, None, 1, "mlflow")
    registry.production.record_removal(change)
    assert registry.production.pending_changes() == ()
    assert entries(registry)[0] == (PRODUCTION, "removed", 1, None, "done")
    assert registry.production.roll_back().version == 1
    assert aliases(registry) == {PRODUCTION: 1}


def test_revert_if_the_active_version_was_deleted(registry: Registry) -> None:
    registry.production.promote(1)
    registry.versions.set_alias(PRODUCTION, 2)
    client_of(registry).delete_model_version(MODEL_NAME, "1")
    assert registry.production.revert(registry.production.pending_changes()[0], "no") is None
    assert aliases(registry) == {}


def test_failed_promotion_is_recorded_and_changes_nothing(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.production.promote(1)

    def gone(_self: object, _name: str, _alias: str, _version: str) -> None:
        raise OSError("the server cannot be reached")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", gone)
        with pytest.raises(RegistryError, match="the server cannot be reached"):
            registry.production.promote(2)
    assert entries(registry)[0] == (PRODUCTION, "promoted", 1, 2, "failed")
    assert registry.production.history()[0].active_version == 1
    assert registry.production.pending_changes() == ()


def test_running_promotion_is_not_pending(registry: Registry) -> None:
    registry.production.promote(1)
    client = client_of(registry)
    experiment = client.get_experiment_by_name(HISTORY_EXPERIMENT).experiment_id
    tags = {"promotion.alias": PRODUCTION, "promotion.from": "1", "promotion.to": "2"}
    run = client.create_run(experiment, tags=tags)
    registry.versions.set_alias(PRODUCTION, 2)
    assert registry.production.history()[0].state == "running"
    assert registry.production.pending_changes() == ()
    hour_ago = int((datetime.now(UTC) - timedelta(hours=1)).timestamp() * 1000)
    client.set_terminated(run.info.run_id, "FAILED")
    old = client.create_run(experiment, tags=tags, start_time=hour_ago)
    assert old.info.status == "RUNNING"
    assert "interrupted" in {entry.state for entry in registry.production.history()}
    assert registry.production.pending_changes() == (PendingAliasChange(PRODUCTION, 2, 1, "mlflow"),)


def test_tags_of_user_and_reason_are_removed(registry: Registry) -> None:
    registry.versions.set_tags(1, {REASON_TAG: "for the study", BY_TAG: "ann"})
    registry.production.promote(1)
    assert not {REASON_TAG, BY_TAG} & registry.versions.find(1).tags.keys()


# ---- versions of one lab


def test_version_of_a_lab_is_used_for_that_lab_only(registry: Registry) -> None:
    registry.production.promote(1)
    assert registry.production.active("lab_b").version == 1
    registry.production.promote(2, alias=LAB_B)
    assert (
        registry.production.active().version,
        registry.production.active("lab_a").version,
        registry.production.active("lab_b").version,
    ) == (1, 1, 2)
    assert entries(registry, LAB_B) == [(LAB_B, "promoted", None, 2, "done")]
    assert entries(registry, PRODUCTION) == [(PRODUCTION, "promoted", None, 1, "done")]


def test_rollback_of_a_lab(registry: Registry) -> None:
    registry.production.promote(1)
    registry.production.promote(2, alias=LAB_B)
    registry.production.promote(1, alias=LAB_B)
    assert aliases(registry) == {PRODUCTION: 1, LAB_B: 1, "previous-lab_b": 2}
    back = registry.production.roll_back(alias=LAB_B)
    assert back is not None
    assert back.version == 2
    assert registry.production.roll_back(alias=LAB_B) is None  # the lab had no version before
    assert aliases(registry) == {PRODUCTION: 1}
    assert registry.production.active("lab_b").version == 1
    assert registry.production.pending_changes() == ()
    with pytest.raises(VersionNotFoundError, match="nothing to roll back to"):
        registry.production.roll_back(alias=LAB_B)


def test_removed_alias_of_a_lab_is_pending(registry: Registry) -> None:
    registry.production.promote(2, alias=LAB_B)
    registry.versions.remove_alias(LAB_B)
    assert registry.production.pending_changes() == (PendingAliasChange(LAB_B, None, 2, "mlflow"),)


# ---- legacy stages

pytestmark = pytest.mark.filterwarnings("ignore")
needs_stages = pytest.mark.skipif(
    not hasattr(mlflow.MlflowClient, "transition_model_version_stage"), reason="this MLflow has no stages any more"
)


def stages(registry: Registry) -> dict[int, str]:
    return {
        int(it.version): it.current_stage for it in client_of(registry).search_model_versions(f"name='{MODEL_NAME}'")
    }


@needs_stages
def test_legacy_stage_is_a_pending_change(registry: Registry) -> None:
    registry.production.promote(1)
    client_of(registry).transition_model_version_stage(MODEL_NAME, "2", "Production")
    assert registry.production.pending_changes() == (PendingAliasChange(PRODUCTION, 2, 1, "stage"),)
    registry.production.promote(2, audit=AuditInfo(via="stage"))
    assert aliases(registry) == {PRODUCTION: 2, PREVIOUS: 1}
    assert registry.production.pending_changes() == ()
    registry.production.promote(1)
    assert stages(registry) == {1: "None", 2: "Archived"}
    assert registry.production.pending_changes() == ()


@needs_stages
def test_legacy_stage_is_reverted(registry: Registry) -> None:
    registry.production.promote(1)
    client_of(registry).transition_model_version_stage(MODEL_NAME, "2", "Production")
    registry.production.revert(registry.production.pending_changes()[0], "no")
    assert stages(registry) == {1: "None", 2: "Archived"}
    assert aliases(registry) == {PRODUCTION: 1}
    assert registry.production.pending_changes() == ()


def test_kept_version_is_recorded_and_nothing_else_changes(registry: Registry) -> None:
    registry.production.promote(1)
    registry.production.promote(2)
    registry.production.promote(2, alias="production-lab_b")
    for lab, alias in (("lab_c", PRODUCTION), ("lab_b", "production-lab_b")):
        before = aliases(registry)
        audit = AuditInfo("ann", reason="It suits it.")
        registry.production.record_kept(registry.production.active(lab), lab, audit=audit)
        entry = registry.production.history()[0]
        assert (entry.alias, entry.action, entry.previous_version, entry.version) == (alias, "kept", 2, 2)
        assert (entry.audit, entry.active_version) == (audit, 2)
        assert aliases(registry) == before
    assert registry.production.pending_changes() == ()
    rolled_back = registry.production.roll_back()
    assert rolled_back is not None
    assert rolled_back.version == 1
