"""Promotions, rollbacks, pending alias changes and their history."""

from datetime import UTC, datetime, timedelta

import mlflow
import pytest

from microseg.errors import RegistryError, VersionNotFoundError
from microseg.registry.history import HISTORY_MODEL
from microseg.registry.production import BY_TAG, REASON_TAG, AuditInfo, Judgement, PendingAliasChange
from microseg.registry.registry import Registry
from microseg.registry.version import CANDIDATE, MODEL_NAME, PREVIOUS, PRODUCTION
from tests.microseg.registry.conftest import client_of

LAB_B = "production-lab_b"


def aliases(registry: Registry) -> dict[str, int]:
    return {alias: version.version for version in registry.versions.all() for alias in version.aliases}


def revert(registry: Registry, reason: str, *, via: str = "mlflow") -> None:
    """Revert the one request, as after its validation."""
    [request] = registry.production.observe()
    audit = AuditInfo(via=via, reason=reason)
    assert registry.production.decide(request, lambda _: Judgement(False, audit)) == "reverted"


def accept(registry: Registry) -> None:
    """Accept the one request."""
    [request] = registry.production.observe()
    assert registry.production.decide(request, lambda _: Judgement(True, request.audit)) == "active"


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


def test_alias_without_history_is_pending_and_not_used(registry: Registry) -> None:
    registry.versions.set_alias(PRODUCTION, 1)
    assert registry.production.pending_changes() == (PendingAliasChange(PRODUCTION, 1, None, "mlflow"),)
    for find in (registry.production.active, lambda: registry.versions.find(PRODUCTION)):
        with pytest.raises(VersionNotFoundError, match="version 1 is requested, but not validated yet"):
            find()
    registry.production.promote(2)
    assert aliases(registry) == {PRODUCTION: 2}
    assert entries(registry) == [
        (PRODUCTION, "promoted", None, 2, "done"),
        (PRODUCTION, "superseded", None, 1, "failed"),  # the request has its result, too
    ]
    assert registry.production.pending_changes() == ()


def test_unvalidated_version_is_not_used(registry: Registry) -> None:
    registry.production.promote(1)
    client_of(registry).set_registered_model_alias(MODEL_NAME, PRODUCTION, "2")
    assert registry.production.active().version == 1
    assert registry.versions.find(PRODUCTION).version == 1
    accept(registry)
    assert registry.production.active().version == registry.versions.find(PRODUCTION).version == 2


def test_correcting_click_wins(registry: Registry) -> None:
    """A person sets the alias to 2, then to 1 while 2 is validated; and the other way round."""
    registry.production.promote(1)
    client_of(registry).set_registered_model_alias(MODEL_NAME, PRODUCTION, "2")
    [request] = registry.production.observe()

    def click(_: int | None) -> Judgement:
        client_of(registry).set_registered_model_alias(MODEL_NAME, PRODUCTION, "1")
        return Judgement(True, request.audit)

    assert registry.production.decide(request, click) == "reverted"
    assert registry.production.active().version == 1
    assert aliases(registry) == {PRODUCTION: 1}
    [withdrawn, _] = registry.production.history()
    assert (withdrawn.action, withdrawn.version, withdrawn.state) == ("reverted", 2, "failed")
    assert withdrawn.audit.reason == "The alias was set back before the request was decided."


def test_verdict_counts_only_against_the_version_in_use(registry: Registry) -> None:
    """Version 1 is promoted while version 2 is judged against no version: version 2 is judged again."""
    request = registry.production.request(2, audit=AuditInfo("ann"))
    judged: list[int | None] = []

    def judge(against: int | None) -> Judgement:
        judged.append(against)
        if against is None:
            registry.production.promote(1, alias=LAB_B)
        return Judgement(True, AuditInfo("ann", gate="accepted"))

    other = registry.production.request(2, alias=LAB_B, audit=AuditInfo("ben"))
    assert registry.production.decide(other, judge) == "superseded"
    assert registry.production.decide(request, judge) == "active"
    assert judged == [None, None]
    third = registry.production.request(2, alias=LAB_B, audit=AuditInfo("ben"))
    judged.clear()

    def slow(against: int | None) -> Judgement:
        judged.append(against)
        if len(judged) == 1:
            registry.production.roll_back(alias=LAB_B)
            registry.production.request(2, alias=LAB_B)
        return Judgement(True, AuditInfo())

    assert registry.production.decide(third, slow) == "superseded"
    assert judged == [1]


def test_read_race_does_not_promote_the_old_version_again(registry: Registry) -> None:
    """Another machine promotes 2 between this one's reading of the history and of the aliases."""
    registry.production.promote(1)
    other = Registry(registry.tracking_uri)
    store = registry.production._store
    read, once = store.read, [True]

    def slow() -> object:
        entries = read()
        if once.pop() if once else False:
            other.production.promote(2)
        return entries

    store.read = slow  # type: ignore[method-assign, assignment]
    assert registry.production.observe() == ()
    assert registry.production.active().version == 2
    assert aliases(registry) == {PRODUCTION: 2, PREVIOUS: 1}
    assert [it.action for it in registry.production.history()] == ["promoted", "promoted"]


def test_killed_between_history_and_alias(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run moves the alias; who promoted and why is kept, and the version is not requested again."""
    registry.production.promote(1)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", killed)
        with pytest.raises(KeyboardInterrupt):
            registry.production.promote(2, audit=AuditInfo("ann", gate="overridden", reason="for the study"))
    assert aliases(registry) == {PRODUCTION: 1}
    assert registry.production.active().version == 2  # decided
    assert registry.production.pending_changes() == ()
    assert Registry(registry.tracking_uri).production.observe() == ()
    assert aliases(registry) == {PRODUCTION: 2, PREVIOUS: 1}
    assert entries(registry)[0] == (PRODUCTION, "promoted", 1, 2, "done")
    assert registry.production.history()[0].audit == AuditInfo("ann", "command", "overridden", "for the study")
    assert registry.versions.find(2).description.startswith("PROMOTED AGAINST THE GATE: by ann. for the study")


def test_order_does_not_depend_on_clocks(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollback under a clock three hours ahead, then a promotion under the right one."""
    from mlflow.store.model_registry import sqlalchemy_store

    now = sqlalchemy_store.get_current_time_millis
    registry.production.promote(1)
    registry.production.promote(2)
    with monkeypatch.context() as patch:
        patch.setattr(sqlalchemy_store, "get_current_time_millis", lambda: now() + 3 * 3600 * 1000)
        registry.production.roll_back()
    registry.production.promote(2)
    times = [it.time for it in registry.production.history()]
    assert times[0] < times[1]  # the clock was set back
    assert [(it.action, it.version) for it in registry.production.history()][:2] == [
        ("promoted", 2),
        ("rolled back", 1),
    ]
    assert registry.production.active().version == 2
    assert registry.production.observe() == ()


def test_aliases_that_only_resemble_production_are_reported_once(registry: Registry) -> None:
    registry.production.promote(1)
    client = client_of(registry)
    client.set_registered_model_alias(MODEL_NAME, "Production", "2")
    client.set_registered_model_alias(MODEL_NAME, "production-lab_q", "2")
    for _ in range(2):
        assert registry.production.observe() == ()
    assert registry.production.active().version == registry.production.active("lab_q").version == 1
    ignored = registry.production.history()[:2]
    assert [(it.alias, it.action, it.version) for it in reversed(ignored)] == [
        ("Production", "ignored", 2),
        ("production-lab_q", "ignored", 2),
    ]
    assert "no lab 'lab_q' is known, the aliases of labs are production-lab_a, production-lab_b" in str(ignored[0])
    assert "spelled 'production'" in str(ignored[1])
    assert registry.versions.find(2).description.startswith("ALIAS NOT KNOWN: The alias 'production-lab_q' changes")
    known = Registry(registry.tracking_uri, labs=lambda: ["lab_q"])  # its first images have arrived
    assert [(it.alias, it.version) for it in known.production.observe()] == [("production-lab_q", 2)]


def test_outdated_candidate_says_so_on_its_page(registry: Registry) -> None:
    for _ in range(2):
        registry.mark_outdated(registry.versions.find(2), "Promoting it would\nlose lab_c.")
        assert registry.versions.find(2).description == "OUTDATED: Promoting it would lose lab_c.\n\nSecond."


def test_damaged_history_is_refused(registry: Registry) -> None:
    registry.production.promote(1)
    registry.production.promote(2)
    client_of(registry).delete_model_version(HISTORY_MODEL, "2")
    with pytest.raises(RegistryError, match="version 2 of it was deleted"):
        Registry(registry.tracking_uri).production.active()
    assert registry.production.active().version == 2  # it has read the entry before


def test_long_reason_is_shortened(registry: Registry) -> None:
    registry.production.promote(1, audit=AuditInfo("ann", reason='ä"' * 6000))
    [entry] = registry.production.history()
    assert entry.audit.reason.startswith('ä"ä')
    assert 2000 < len(entry.audit.reason) < 5000


def test_reverted_version_states_the_reason(registry: Registry) -> None:
    registry.production.promote(1)
    registry.versions.set_alias(PRODUCTION, 2)
    revert(registry, "It was\nnot evaluated.")
    assert registry.production.active().version == 1
    assert aliases(registry) == {PRODUCTION: 1}
    assert entries(registry)[0] == (PRODUCTION, "reverted", 1, 2, "failed")
    assert registry.production.history()[0].active_version == 1
    assert registry.production.pending_changes() == ()
    assert registry.versions.find(2).description == "NOT IN PRODUCTION: It was not evaluated.\n\nSecond."
    registry.versions.set_alias(PRODUCTION, 2)
    revert(registry, "Still not.")
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
    registry.production.promote(1)
    registry.production.promote(2, audit=AuditInfo("ann", gate="accepted"))
    assert registry.versions.find(2).description == "Second."


def test_reverted_first_version_leaves_no_production(registry: Registry) -> None:
    registry.versions.set_alias(PRODUCTION, 1)
    revert(registry, "no")
    assert aliases(registry) == {}
    assert registry.production.pending_changes() == ()


def test_removed_alias_can_be_rolled_back_to(registry: Registry) -> None:
    registry.production.promote(1)
    registry.versions.remove_alias(PRODUCTION)
    assert registry.production.pending_changes() == (PendingAliasChange(PRODUCTION, None, 1, "mlflow"),)
    accept(registry)
    assert registry.production.pending_changes() == ()
    assert entries(registry)[0] == (PRODUCTION, "removed", 1, None, "done")
    rolled_back = registry.production.roll_back()
    assert rolled_back is not None
    assert rolled_back.version == 1
    assert aliases(registry) == {PRODUCTION: 1}


def test_revert_if_the_active_version_was_deleted(registry: Registry) -> None:
    registry.production.promote(1)
    registry.versions.set_alias(PRODUCTION, 2)
    client_of(registry).delete_model_version(MODEL_NAME, "1")
    revert(registry, "no")
    assert aliases(registry) == {}
    with pytest.raises(VersionNotFoundError):
        registry.production.active()


def test_failed_promotion_changes_nothing(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.production.promote(1)

    def gone(*_: object, **__: object) -> None:
        raise OSError("the server cannot be reached")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "create_model_version", gone)
        with pytest.raises(RegistryError, match="the server cannot be reached"):
            registry.production.promote(2)
    assert entries(registry) == [(PRODUCTION, "promoted", None, 1, "done")]
    assert aliases(registry) == {PRODUCTION: 1}
    assert registry.production.pending_changes() == ()


def test_request_of_a_killed_process_is_found(registry: Registry) -> None:
    registry.production.promote(1)
    registry.production.request(2, against=1, audit=AuditInfo("ann", "command", "overridden", "for the study"))
    assert registry.production.history()[0].state == "running"
    assert aliases(registry) == {PRODUCTION: 1}
    assert registry.production.pending_changes() == (PendingAliasChange(PRODUCTION, 2, 1, "command"),)
    accept(registry)
    assert entries(registry)[0] == (PRODUCTION, "promoted", 1, 2, "done")
    assert registry.production.history()[0].audit == AuditInfo("ann", "command", "overridden", "for the study")


def test_repeating_the_promotion_of_a_killed_process_goes_on_with_its_request(registry: Registry) -> None:
    registry.production.promote(1)
    audit = AuditInfo("ann", "command", "accepted", "for the study")
    first = registry.production.request(2, against=1, audit=audit)
    assert registry.production.request(2, against=1, audit=audit) == first
    registry.production.promote(2, audit=audit)
    assert [(it.action, it.version) for it in registry.production.history()] == [("promoted", 2), ("promoted", 1)]
    assert registry.production.history()[0].audit == audit


def test_request_of_another_person_or_for_another_reason_supersedes(registry: Registry) -> None:
    registry.production.promote(1)
    for audit in (AuditInfo("ann"), AuditInfo("ben"), AuditInfo("ben", reason="for the study")):
        registry.production.request(2, against=1, audit=audit)
    history = registry.production.history()
    assert [it.action for it in history] == ["requested", "superseded", "superseded", "promoted"]
    assert [it.audit.by for it in history] == ["ben", "ben", "ann", None]


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
    revert(registry, "no")
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
