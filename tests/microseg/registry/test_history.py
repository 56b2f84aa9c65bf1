"""The history of production in MLflow: what is requested of it, and what is kept."""

from pathlib import Path

import mlflow
import pytest

from microseg.registry.history import HISTORY_MODEL
from microseg.registry.production import AuditInfo
from microseg.registry.registry import Registry
from microseg.registry.version import MODEL_NAME, PREVIOUS, PRODUCTION


def client_of(registry: Registry) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri=registry.tracking_uri, registry_uri=registry.tracking_uri)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The filters of all searches for versions."""
    made = list[str]()
    search = mlflow.MlflowClient.search_model_versions

    def watched(self: mlflow.MlflowClient, filter_string: str, **options: object) -> object:
        made.append(filter_string)
        return search(self, filter_string, **options)

    monkeypatch.setattr(mlflow.MlflowClient, "search_model_versions", watched)
    return made


def test_only_new_entries_are_requested(registry: Registry, requests: list[str]) -> None:
    registry.production.promote(1)
    other = Registry(registry.tracking_uri)
    assert other.production.active().version == 1
    registry.production.promote(2)
    requests.clear()
    assert other.production.active().version == 2
    assert requests == [f"name='{HISTORY_MODEL}' AND version_number >= 2"]


def test_decision_that_another_process_applies_later_is_read_again(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, third = Registry(registry.tracking_uri), Registry(registry.tracking_uri)
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", lambda *_: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            registry.production.promote(1)
    registry.production.record_kept(registry.versions.get(1), "lab_a")  # type: ignore[arg-type]  # an entry after it
    assert not other.production.state().of(PRODUCTION).result.applied  # type: ignore[union-attr]
    third.production.observe()
    assert other.production.state().of(PRODUCTION).result.applied  # type: ignore[union-attr]


def test_history_that_was_begun_again_is_read_as_a_whole(registry: Registry, tmp_path: Path) -> None:
    other = Registry(registry.tracking_uri, snapshots=tmp_path)
    for version in (1, 2):
        registry.production.promote(version)
    assert other.production.active().version == 2
    client = client_of(registry)
    client.delete_registered_model(HISTORY_MODEL)
    client.delete_registered_model_alias(MODEL_NAME, PREVIOUS)
    assert Registry(registry.tracking_uri).production.history() == ()
    Registry(registry.tracking_uri).production.promote(2)
    Registry(registry.tracking_uri).production.promote(1)
    assert [entry.version for entry in other.production.history()] == [1, 2, 2]  # the alias was a request first


def test_snapshot_is_used_by_the_next_process(
    registry: Registry, requests: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microseg.registry.history._SNAPSHOT_STEP", 1)
    registry.production.promote(1, audit=AuditInfo("ann", reason="für ü"))
    Registry(registry.tracking_uri, snapshots=tmp_path).production.active()
    requests.clear()
    later = Registry(registry.tracking_uri, snapshots=tmp_path)
    assert later.production.history() == registry.production.history()
    assert requests[0] == f"name='{HISTORY_MODEL}' AND version_number >= 2"
    [file] = tmp_path.glob("history-*.json")
    file.write_text(file.read_text()[:-5])
    requests.clear()
    assert Registry(registry.tracking_uri, snapshots=tmp_path).production.active().version == 1
    assert requests[0] == f"name='{HISTORY_MODEL}'"


def test_alias_that_a_slow_process_sets_after_a_rollback_is_no_request(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is paused before it moves the alias, another one applies the promotion and rolls back, then it is killed."""
    registry.production.promote(1)
    other = Registry(registry.tracking_uri)
    store = registry.production._store
    move = store.move_alias

    def slow(alias: str, expected: int | None, version: int | None) -> None:
        other.production.observe()
        other.production.roll_back(audit=AuditInfo("eve", reason="worse"))
        move(alias, expected, version)
        raise KeyboardInterrupt

    store.move_alias = slow  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        registry.production.promote(2, audit=AuditInfo("ann"))
    assert other.versions.aliases() == {PRODUCTION: 2}
    assert other.production.active().version == 1
    assert other.production.observe() == ()
    assert other.versions.aliases() == {PRODUCTION: 1}
    assert other.production.observe() == ()
    newest = other.production.history()[0]
    assert (newest.action, newest.version, newest.state) == ("ignored", 2, "failed")
    assert "slower than a later change, or by a person at that time: if it was a person, set it again" in str(newest)
    client_of(registry).set_registered_model_alias(MODEL_NAME, PRODUCTION, "2")  # a person, again
    [request] = other.production.observe()
    assert request.version == 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(
    not hasattr(mlflow.MlflowClient, "transition_model_version_stage"), reason="this MLflow has no stages any more"
)
def test_stage_of_a_version_before_the_active_one_is_found(registry: Registry, requests: list[str]) -> None:
    registry.production.promote(1)
    assert f"name='{MODEL_NAME}'" not in requests  # all versions are listed only if a stage is used
    client = client_of(registry)
    client.transition_model_version_stage(MODEL_NAME, "2", "Production")
    registry.production.promote(2)
    client.transition_model_version_stage(MODEL_NAME, "1", "Production")
    [change] = registry.production.pending_changes()
    assert (change.requested_version, change.via) == (1, "stage")


def test_versions_that_were_adapted_to_a_lab_are_listed(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microseg.registry.versions._PAGE", 1)
    for version in (1, 2):
        registry.versions.set_tags(version, {"target": "lab_b"})
    assert [version.version for version in registry.versions.adapted_to("lab_b")] == [2, 1]
    assert list(registry.versions.adapted_to("lab_c")) == []
