"""What is in production changes in many ways; the history knows each of them."""

from datetime import UTC, datetime, timedelta

import mlflow
import pytest

from microseg.errors import RegistryError, VersionNotFoundError
from microseg.registry.history import HISTORY_EXPERIMENT, AuditInfo
from microseg.registry.production import BY_TAG, REASON_TAG, PendingAliasChange
from microseg.registry.registry import Registry
from microseg.registry.version import CANDIDATE, MODEL_NAME, PREVIOUS, PRODUCTION

LAB_B = "production-lab_b"


def client_of(registry: Registry) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri=registry.tracking_uri, registry_uri=registry.tracking_uri)


def aliases(registry: Registry) -> dict[str, int]:
    return {alias: version.version for version in registry.versions() for alias in version.aliases}


def told(registry: Registry, alias: str | None = None) -> list[tuple[str, str, int | None, int | None, str]]:
    return [(it.alias, it.action, it.before, it.version, it.state) for it in registry.history(alias)]


def test_a_promotion_is_told_whole(registry: Registry) -> None:
    began = datetime.now(UTC)
    registry.promote(1, cause=AuditInfo("ann", "command", "accepted", "The first."))
    [entry] = registry.history()
    assert (entry.alias, entry.action, entry.before, entry.version, entry.now) == (PRODUCTION, "promoted", None, 1, 1)
    assert entry.cause == AuditInfo("ann", "command", "accepted", "The first.")
    assert began - timedelta(seconds=1) < entry.when < datetime.now(UTC)


def test_the_newest_comes_first_and_rollbacks_count(registry: Registry) -> None:
    registry.promote(1)
    registry.promote(2)
    registry.rollback(cause=AuditInfo(reason="worse"))
    assert told(registry) == [
        (PRODUCTION, "rolled back", 2, 1, "done"),
        (PRODUCTION, "promoted", 1, 2, "done"),
        (PRODUCTION, "promoted", None, 1, "done"),
    ]
    assert registry.history()[0].cause.reason == "worse"
    assert registry.pending_changes() == ()


def test_promoting_what_is_in_production_adds_no_entry(registry: Registry) -> None:
    registry.promote(1)
    registry.set_alias(CANDIDATE, 1)
    registry.promote(1)
    assert len(registry.history()) == 1
    assert aliases(registry) == {PRODUCTION: 1}


def test_a_moved_alias_is_noticed_until_it_is_settled(registry: Registry) -> None:
    assert registry.pending_changes() == ()
    registry.promote(1)
    assert registry.pending_changes() == ()
    client_of(registry).set_registered_model_alias(MODEL_NAME, PRODUCTION, "2")  # as a click in MLflow's page does
    assert registry.pending_changes() == (PendingAliasChange(PRODUCTION, 2, 1, "mlflow"),)
    registry.promote(2, alias=PRODUCTION, cause=AuditInfo(via="mlflow"))
    assert registry.pending_changes() == ()
    assert aliases(registry) == {PRODUCTION: 2, PREVIOUS: 1}
    assert told(registry)[0] == (PRODUCTION, "promoted", 1, 2, "done")


def test_what_was_promoted_before_there_was_a_history(registry: Registry) -> None:
    registry.set_alias(PRODUCTION, 1)
    assert registry.pending_changes() == (PendingAliasChange(PRODUCTION, 1, None, "mlflow"),)
    registry.promote(2)
    assert aliases(registry) == {PRODUCTION: 2, PREVIOUS: 1}
    assert registry.pending_changes() == ()


def test_a_refused_version_goes_back_and_says_why(registry: Registry) -> None:
    registry.promote(1)
    registry.set_alias(PRODUCTION, 2)
    [change] = registry.pending_changes()
    back = registry.revert(change, "It was\nnever judged.", cause=AuditInfo(via="mlflow", reason="never judged"))
    assert back is not None
    assert back.version == 1
    assert aliases(registry) == {PRODUCTION: 1}
    assert told(registry)[0] == (PRODUCTION, "refused", 1, 2, "failed")
    assert registry.history()[0].now == 1
    assert registry.pending_changes() == ()
    assert registry.resolve(2).description == "NOT IN PRODUCTION: It was never judged.\n\nSecond."
    registry.set_alias(PRODUCTION, 2)
    registry.revert(registry.pending_changes()[0], "Still not.")
    assert registry.resolve(2).description == "NOT IN PRODUCTION: Still not.\n\nSecond."
    registry.promote(2)
    assert registry.resolve(2).description == "Second."


def test_a_version_promoted_against_the_gate_says_so(registry: Registry) -> None:
    registry.promote(1)
    registry.promote(2, cause=AuditInfo("ann", gate="refused, overridden", reason="Looked\nat it."))
    assert registry.resolve(2).description == "PROMOTED AGAINST THE GATE: by ann. Looked at it.\n\nSecond."
    registry.promote(1)
    registry.promote(2, cause=AuditInfo("ann", gate="accepted"))
    assert registry.resolve(2).description == "Second."


def test_a_refused_first_version_leaves_nothing_in_production(registry: Registry) -> None:
    registry.set_alias(PRODUCTION, 1)
    assert registry.revert(registry.pending_changes()[0], "no") is None
    assert aliases(registry) == {}
    assert registry.pending_changes() == ()


def test_a_removed_alias_can_be_rolled_back_to(registry: Registry) -> None:
    registry.promote(1)
    registry.remove_alias(PRODUCTION)
    [change] = registry.pending_changes()
    assert change == PendingAliasChange(PRODUCTION, None, 1, "mlflow")
    registry.record_removal(change)
    assert registry.pending_changes() == ()
    assert told(registry)[0] == (PRODUCTION, "withdrawn", 1, None, "done")
    assert registry.rollback().version == 1
    assert aliases(registry) == {PRODUCTION: 1}


def test_a_settled_version_that_was_deleted(registry: Registry) -> None:
    registry.promote(1)
    registry.set_alias(PRODUCTION, 2)
    client_of(registry).delete_model_version(MODEL_NAME, "1")
    assert registry.revert(registry.pending_changes()[0], "no") is None
    assert aliases(registry) == {}


def test_a_promotion_that_fails_is_told_and_changes_nothing(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.promote(1)

    def gone(_self: object, _name: str, _alias: str, _version: str) -> None:
        raise OSError("the server is gone")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", gone)
        with pytest.raises(RegistryError, match="the server is gone"):
            registry.promote(2)
    assert told(registry)[0] == (PRODUCTION, "promoted", 1, 2, "failed")
    assert registry.history()[0].now == 1
    assert registry.pending_changes() == ()


def test_a_promotion_under_way_is_left_alone(registry: Registry) -> None:
    registry.promote(1)
    client = client_of(registry)
    experiment = client.get_experiment_by_name(HISTORY_EXPERIMENT).experiment_id
    tags = {"promotion.alias": PRODUCTION, "promotion.from": "1", "promotion.to": "2"}
    run = client.create_run(experiment, tags=tags)
    registry.set_alias(PRODUCTION, 2)
    assert registry.history()[0].state == "running"
    assert registry.pending_changes() == ()
    hour_ago = int((datetime.now(UTC) - timedelta(hours=1)).timestamp() * 1000)
    client.set_terminated(run.info.run_id, "FAILED")
    old = client.create_run(experiment, tags=tags, start_time=hour_ago)
    assert old.info.status == "RUNNING"
    assert "interrupted" in {entry.state for entry in registry.history()}
    assert registry.pending_changes() == (PendingAliasChange(PRODUCTION, 2, 1, "mlflow"),)


def test_who_and_why_are_said_once(registry: Registry) -> None:
    registry.set_tags(1, {REASON_TAG: "for the study", BY_TAG: "ann"})
    registry.promote(1)
    assert not {REASON_TAG, BY_TAG} & registry.resolve(1).tags.keys()


# ---- a lab's own


def test_a_labs_own_version_is_used_for_it_alone(registry: Registry) -> None:
    registry.promote(1)
    assert registry.in_use("lab_b").version == 1
    registry.promote(2, alias=LAB_B)
    assert (registry.in_use().version, registry.in_use("lab_a").version, registry.in_use("lab_b").version) == (1, 1, 2)
    assert told(registry, LAB_B) == [(LAB_B, "promoted", None, 2, "done")]
    assert told(registry, PRODUCTION) == [(PRODUCTION, "promoted", None, 1, "done")]


def test_a_labs_own_way_back(registry: Registry) -> None:
    registry.promote(1)
    registry.promote(2, alias=LAB_B)
    registry.promote(1, alias=LAB_B)
    assert aliases(registry) == {PRODUCTION: 1, LAB_B: 1, "previous-lab_b": 2}
    back = registry.rollback(alias=LAB_B)
    assert back is not None
    assert back.version == 2
    assert registry.rollback(alias=LAB_B) is None  # before its own it used everyone's
    assert aliases(registry) == {PRODUCTION: 1}
    assert registry.in_use("lab_b").version == 1
    assert registry.pending_changes() == ()
    with pytest.raises(VersionNotFoundError, match="nothing to go back to"):
        registry.rollback(alias=LAB_B)


def test_a_labs_alias_that_is_removed_is_noticed(registry: Registry) -> None:
    registry.promote(2, alias=LAB_B)
    registry.remove_alias(LAB_B)
    assert registry.pending_changes() == (PendingAliasChange(LAB_B, None, 2, "mlflow"),)


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
def test_a_stage_is_a_wish_too(registry: Registry) -> None:
    registry.promote(1)
    client_of(registry).transition_model_version_stage(MODEL_NAME, "2", "Production")
    assert registry.pending_changes() == (PendingAliasChange(PRODUCTION, 2, 1, "stage"),)
    registry.promote(2, cause=AuditInfo(via="stage"))
    assert aliases(registry) == {PRODUCTION: 2, PREVIOUS: 1}
    assert registry.pending_changes() == ()
    registry.promote(1)
    assert stages(registry) == {1: "None", 2: "Archived"}
    assert registry.pending_changes() == ()


@needs_stages
def test_a_stage_is_put_back(registry: Registry) -> None:
    registry.promote(1)
    client_of(registry).transition_model_version_stage(MODEL_NAME, "2", "Production")
    registry.revert(registry.pending_changes()[0], "no")
    assert stages(registry) == {1: "None", 2: "Archived"}
    assert aliases(registry) == {PRODUCTION: 1}
    assert registry.pending_changes() == ()
