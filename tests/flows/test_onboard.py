"""Onboarding without a Prefect server; `test_service.py` tests the events."""

import os
import shutil
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import Result
from prefect.client.orchestration import get_client
from prefect.states import Failed, Scheduled

from flows import onboard as module
from flows.health.status import read_status
from flows.onboard import onboard
from flows.reconcile import reconcile
from flows.service import drop_folder
from flows.workspace import open_workspace
from microseg.config.settings import load_settings
from microseg.datasets.drop_folder import DropFolder
from microseg.datasets.incoming import read_incoming_folder
from microseg.datasets.onboarding import Onboarding, OnboardingStore, new_onboarding
from microseg.errors import LabError, NoSpaceError, RegistryUnavailableError
from tests.flows.conftest import LENIENT, REVIEW

Run = Callable[..., Result]


def onboarded(folder: Path, *changes: str) -> Any:
    return onboard(folder, changes, return_state=True)


@pytest.fixture
def lab_c(tmp_path: Path, incoming_labs: tuple[Path, Path]) -> Path:
    folder = tmp_path / "incoming" / "lab_c"
    shutil.copytree(incoming_labs[1], folder)
    (folder / "lab.yaml").write_text((folder / "lab.yaml").read_text().replace("lab_b", "lab_c"))
    return folder


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The events emitted: name, resource, payload."""
    emitted: list[tuple[Any, ...]] = []
    monkeypatch.setattr("flows.service.events.emit", lambda *event, identity: emitted.append((*event, identity)))
    return emitted


def test_adapts_one_candidate_for_one_dataset(copied: Any, lab_c: Path) -> None:
    state = onboarded(lab_c)
    assert state.is_completed(), state.message
    assert state.message.startswith("Version 3 is the candidate for lab_c. The gate ")
    candidate = copied.registry.versions.find("candidate")
    assert (candidate.version, candidate.tags["target"], candidate.tags["base_version"]) == (3, "lab_c", "2")
    assert candidate.tags["gate"] in ("accepted", "refused", "needs review")
    again = onboarded(lab_c)
    assert again.message.startswith("Nothing to do: this dataset of lab_c is onboarded already.")
    assert len(copied.registry.versions.all()) == 3

    # killed after the adaptation, which is not repeated
    store = open_workspace(load_settings()).onboarding
    store.write(store.read("lab_c"), state="running")
    assert onboarded(lab_c).message.startswith("Version 3 is the candidate")
    assert store.read("lab_c").attempts == 2

    # at the same time by another process
    with store.lock("lab_c", wait=False):
        assert onboarded(lab_c).message == "Nothing to do: another run is onboarding this dataset of lab_c."


def test_waits_for_a_production_model(fresh: Path, lab_c: Path) -> None:
    state = onboarded(lab_c)
    assert state.is_completed()
    assert "run `microseg train` first" in state.message
    assert open_workspace(load_settings()).onboarding.read("lab_c").state == "awaiting_production"
    assert reconcile(return_state=True).message == "Nothing to do."


def test_message_counts_rejected_whole_slides(fresh: Path, lab_c: Path) -> None:
    for name in ("x.svs", "y.ndpi"):
        (lab_c / "images" / name).write_bytes(b"slide")
    state = onboarded(lab_c)
    assert state.is_completed()
    kept = fresh / "data" / "quarantine" / "lab_c"
    assert f"Files rejected: 2 (whole slides: 2); reasons: {kept}/reasons.csv." in state.message
    assert open_workspace(load_settings()).onboarding.read("lab_c").message == state.message
    assert (kept / "images" / "x.svs").read_bytes() == b"slide"


def test_slides_without_images_fail_with_advice(
    fresh: Path, lab_c: Path, announced: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    for image in list((lab_c / "images").iterdir()):
        image.rename(image.with_suffix(".svs"))
    (lab_c / "images.csv").unlink()
    slides = len(list((lab_c / "images").iterdir()))
    folder = DropFolder(lab_c.parent, 0)
    with caplog.at_level("INFO", logger="flows.service.drop_folder"):
        for _ in range(2):
            drop_folder.announce_complete(folder, load_settings(), {})
    assert announced == [str(lab_c)]
    assert f"is complete (images: 0, whole slides: {slides})" in caplog.text
    assert onboarded(lab_c).is_failed()
    onboarding = open_workspace(load_settings()).onboarding.read("lab_c")
    assert onboarding.state == "failed"
    assert f"Files rejected: {slides} (whole slides: {slides});" in onboarding.message
    assert "Copy it again with all of its files" in onboarding.message
    reasons = (fresh / "data" / "quarantine" / "lab_c" / "reasons.csv").read_text()
    assert reasons.count("no slide reader recognizes") == slides


def test_command_fails_with_the_reason(fresh: Path, lab_c: Path, run: Run) -> None:
    (lab_c / "images.csv").unlink()
    for image in (lab_c / "images").iterdir():
        image.write_bytes(b"no image")
    result = run(module.command, lab_c, "--here")
    assert result.exit_code == 1
    assert "expected at least one usable image" in " ".join(result.stderr.split())


def test_dataset_of_the_production_model_needs_no_adaptation(copied: Any) -> None:
    state = onboarded(copied.lab_b)
    assert "Version 2, in production, was trained on this version of the dataset of lab_b." in state.message
    assert len(copied.registry.versions.all()) == 2


SUITED = ("onboarding.adapt_when_suited=false", "onboarding.max_consistency_loss=1")


@pytest.fixture
def adapted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labs to which an adaptation began, which is not computed: `test_adapts_one_candidate_for_one_dataset` is."""
    labs: list[str] = []

    def begin(lab: str, **_: object) -> None:
        labs.append(lab)
        raise KeyboardInterrupt  # Prefect would answer its own signal by ending this process

    monkeypatch.setattr(module, "adapt", begin)
    return labs


def test_lab_that_production_suits_is_not_adapted_to_by_itself(
    copied: Any, lab_c: Path, events: list[tuple[Any, ...]], adapted: list[str]
) -> None:
    """Version 2, in production, was adapted to lab_b, which lab_c is like."""
    state = onboarded(lab_c, *SUITED)
    assert state.is_completed(), state.message
    assert state.message.startswith(
        "Version 2, in production, already suits lab_c, so nothing needs to be done: 0 of 6 images"
    ), state.message
    assert f"microseg onboard {lab_c} --set onboarding.adapt_when_suited=true" in state.message
    assert len(copied.registry.versions.all()) == 2
    stored = open_workspace(load_settings()).onboarding.read("lab_c")
    assert (stored.state, stored.message, stored.candidate) == ("already_suited", state.message, None)
    entry = copied.registry.production.history()[0]
    assert (entry.alias, entry.action, entry.previous_version, entry.version) == ("production", "kept", 2, 2)
    assert str(entry) == f"Version 2 stays in production. {state.message}"
    [(name, resource, payload, _)] = events
    assert (name, resource) == ("microseg.lab.already_suited", "microseg.lab.lab_c")
    assert payload == {"lab": "lab_c", "version": 2, "message": state.message}
    [lab] = [lab for lab in read_status(load_settings()).labs if lab.lab == "lab_c"]
    assert lab.onboarding.startswith("already_suited: Version 2")
    client = mlflow.MlflowClient(copied.registry.tracking_uri)
    metrics = client.get_run(copied.registry.versions.find(2).run_id).data.metrics
    assert {"ood_share/lab_c", "ood_score/lab_c", "augmentation_consistency/lab_c"} <= metrics.keys()

    assert reconcile(return_state=True).message == "Nothing to do."
    assert onboarded(lab_c, *SUITED).message == state.message  # measured again: production may have changed
    assert adapted == []
    with pytest.raises(KeyboardInterrupt):
        onboard(lab_c)
    assert adapted == ["lab_c"]


def test_lab_that_production_does_not_suit_is_adapted_to(copied: Any, lab_c: Path, adapted: list[str]) -> None:
    copied.registry.production.roll_back()  # to version 1, which never saw such a lab
    with pytest.raises(KeyboardInterrupt):
        onboard(lab_c, SUITED)
    assert adapted == ["lab_c"]


def test_lab_is_adapted_to_without_a_reference_distribution(
    copied: Any, lab_c: Path, adapted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microseg.registry.versions.REFERENCE_FILE", "missing.json")
    with pytest.raises(KeyboardInterrupt):
        onboard(lab_c, SUITED)
    assert adapted == ["lab_c"]


def test_unusable_dataset_fails(copied: Any, lab_c: Path, run: Run) -> None:
    for image in (lab_c / "images").iterdir():
        image.write_bytes(b"no image")
    (lab_c / "images.csv").unlink()
    state = onboarded(lab_c)
    assert state.is_failed()
    assert open_workspace(load_settings()).onboarding.read("lab_c").state == "failed"
    (lab_c / "lab.yaml").unlink()
    result = run(module.command, lab_c)
    assert result.exit_code == 1
    assert "lab.yaml is missing" in " ".join(result.stderr.split())


def test_gate_decides_without_a_person(copied: Any, lab_c: Path) -> None:
    state = onboarded(lab_c, "promotion.approval=gate", "promotion.per_lab=true", *LENIENT)
    assert state.message.startswith("Version 3 is in production, by the decision of the gate."), state.message
    assert (copied.registry.production.active().version, copied.registry.production.active("lab_c").version) == (2, 3)
    assert copied.registry.production.history()[0].audit.by == "the gate"


def test_person_is_asked_where_the_gate_cannot_tell(copied: Any, lab_c: Path, events: list[tuple[Any, ...]]) -> None:
    state = onboarded(lab_c, "promotion.approval=gate", *REVIEW)
    text = "The gate cannot tell whether it is better than version 2: a person must look. The candidate marks "
    assert state.is_completed()
    assert state.message.startswith(f"Version 3 is the candidate for lab_c. {text}"), state.message
    assert state.message.endswith("and set the alias production on it in MLflow.")
    assert copied.aliases == {"production": 2, "previous": 1, "candidate-lab_c": 3}
    assert [event[0] for event in events] == ["microseg.review.requested"]
    [lab] = [lab for lab in read_status(load_settings()).labs if lab.lab == "lab_c"]
    assert lab.candidate == "3 (needs review)"


# ---- watching


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders of the events emitted, without a server."""
    folders: list[str] = []
    monkeypatch.setattr(
        "flows.service.events.emit", lambda _event, _resource, payload: folders.append(payload["folder"])
    )
    return folders


def test_announces_each_dataset_once(fresh: Path, lab_c: Path, announced: list[str]) -> None:
    settings, reported = load_settings(), {}
    folder = DropFolder(lab_c.parent, 0)
    for _ in range(4):
        drop_folder.announce_complete(folder, settings, reported)
    assert announced == [str(lab_c)]
    drop_folder.announce_complete(DropFolder(lab_c.parent, 0), settings, reported)  # after a restart
    for _ in range(2):
        drop_folder.announce_complete(folder, settings, reported)
    assert announced == [str(lab_c)]
    shutil.copy(lab_c / "images" / "lab_b_000.png", lab_c / "images" / "more.png")
    for _ in range(4):
        drop_folder.announce_complete(folder, settings, reported)
    assert announced == [str(lab_c)] * 2


def test_incomplete_dataset_is_logged_once(
    fresh: Path, lab_c: Path, announced: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    (lab_c / "lab.yaml").unlink()
    folder, reported = DropFolder(lab_c.parent, 0), {}
    for _ in range(3):
        drop_folder.announce_complete(folder, load_settings(), reported)
    assert announced == []
    assert [record.message for record in caplog.records if "lab.yaml is missing" in record.message] == [
        f"{lab_c} is incomplete and was not ingested: lab.yaml is missing"
    ]


def test_datasets_of_one_lab_in_two_folders_are_onboarded_one_after_the_other(
    fresh: Path, lab_c: Path, announced: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    second = lab_c.with_name("lab_c, second delivery")
    shutil.copytree(lab_c, second)
    (second / "images" / "lab_b_000.png").touch()
    settings, reported, folder = load_settings(), {}, DropFolder(lab_c.parent, 0)
    store = open_workspace(settings).onboarding
    for _ in range(5):
        drop_folder.announce_complete(folder, settings, reported)
    assert announced == [str(lab_c)]
    waiting = f"{second} waits: {lab_c}, which states the same lab lab_c, is being onboarded"
    assert [record.message for record in caplog.records if "waits" in record.message] == [waiting]
    store.write(store.read("lab_c"), state="completed")
    for _ in range(5):
        drop_folder.announce_complete(folder, settings, reported)
    assert announced == [str(lab_c), str(second)]
    store.write(store.read("lab_c"), state="completed")
    for _ in range(5):
        drop_folder.announce_complete(folder, settings, reported)
    assert len(announced) == 2


def test_slow_arrival_waits_with_a_message(fresh: Path, lab_c: Path, announced: list[str], run: Run) -> None:
    last = lab_c / "images" / "lab_b_005.png"
    content = last.read_bytes()
    last.unlink()
    settings, reported, folder = load_settings(), {}, DropFolder(lab_c.parent, 0)
    store = open_workspace(settings).onboarding
    for _ in range(3):
        drop_folder.announce_complete(folder, settings, reported)
    message = "names 6 files, of which 1 are not in images/ yet (lab_b_005.png)"
    assert (announced, store.read("lab_c").state) == ([], "incomplete")
    assert message in store.read("lab_c").message
    state = onboarded(lab_c)  # by an event that other software sent too early
    assert state.is_completed()
    assert message in state.message
    assert "It is onboarded when it is complete." in state.message
    assert message in " ".join(run(module.command, lab_c).stderr.split())
    assert reconcile(return_state=True).message == "Nothing to do."
    last.write_bytes(content)
    for _ in range(3):
        drop_folder.announce_complete(folder, settings, reported)
    assert announced == [str(lab_c)]


def test_one_bad_dataset_does_not_end_the_watching(
    fresh: Path, lab_c: Path, announced: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad = lab_c.parent / os.fsdecode(b"a lab\xe9")
    shutil.copytree(lab_c, bad)
    (bad / "lab.yaml").write_text((bad / "lab.yaml").read_text().replace("lab_c", "lab_d"))
    worse = lab_c.parent / "b"
    shutil.copytree(lab_c, worse)
    (worse / "lab.yaml").write_text("lab: lab_e\nstain: x\nmpp: 2026-13-45\nclasses: [a, b]\n")
    stop = threading.Event()
    monkeypatch.setattr(stop, "wait", lambda _: len(announced) > 0)
    monkeypatch.setenv("MICROSEG_ONBOARDING__DROP_FOLDER", str(lab_c.parent))
    monkeypatch.setenv("MICROSEG_ONBOARDING__QUIET_PERIOD", "0.01")
    drop_folder.watch(load_settings(), stop)
    assert announced == [str(lab_c)]
    assert "expected the name of a folder in Unicode, got another encoding. Rename it." in caplog.text
    assert f"{worse} is incomplete and was not ingested" in caplog.text


# ---- faults


def test_registry_that_is_away_delays_an_onboarding(
    copied: Any, lab_c: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing that was done before is repeated."""
    store = open_workspace(load_settings()).onboarding

    def away(*_: object, **__: object) -> None:
        raise RegistryUnavailableError("the registry cannot be reached.")

    with monkeypatch.context() as patch:
        patch.setattr("flows.adapt.register_model", away)
        assert onboarded(lab_c).is_failed()
        onboarding = store.read("lab_c")
        assert (onboarding.state, onboarding.failures, onboarding.crashes) == ("retrying", 1, 0)
        assert onboarding.message == "the registry cannot be reached. It is tried again in 1 minutes."
        assert onboarded(lab_c).is_failed()
        assert store.read("lab_c").failures == 2
    steps: list[int] = []
    monkeypatch.setattr("microseg.training.loop._Fit._take_step", lambda *_: steps.append(1))
    assert onboarded(lab_c).message.startswith("Version 3 is the candidate for lab_c.")
    assert steps == []
    onboarding = store.read("lab_c")
    assert (onboarding.state, onboarding.failures, onboarding.crashes) == ("completed", 0, 0)
    assert not list((copied.home / "runs" / "adapt").glob("*.checkpoint"))


def test_stopped_onboarding_starts_again(copied: Any, lab_c: Path, adapted: list[str]) -> None:
    store = open_workspace(load_settings()).onboarding
    with pytest.raises(KeyboardInterrupt):
        onboard(lab_c)
    assert (store.read("lab_c").state, store.read("lab_c").failures) == ("retrying", 0)
    assert "was interrupted (retrying)" in reconcile(return_state=True).message
    with pytest.raises(KeyboardInterrupt):
        onboard(lab_c)
    assert adapted == ["lab_c"] * 2


def test_folder_of_a_share_that_is_away_is_retried(fresh: Path, lab_c: Path) -> None:
    store = open_workspace(load_settings()).onboarding
    store.write(new_onboarding(read_incoming_folder(lab_c)))
    lab_c.rename(fresh / "elsewhere")  # an empty mount point remains
    assert onboarded(lab_c).is_failed()
    assert store.read("lab_c").state == "retrying"
    (lab_c.parent / "lab_x").mkdir()  # the share is there, the folder is not
    assert onboarded(lab_c).is_failed()
    assert store.read("lab_c").state == "failed"
    assert "found none" in store.read("lab_c").message


# ---- reconciling


def test_reconcile_restarts_interrupted_onboardings(copied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[str] = []
    monkeypatch.setattr("flows.reconcile.emit", lambda _event, _resource, payload: reported.append(payload["lab"]))
    store, expected = open_workspace(load_settings()).onboarding, set()
    for number, (state, minutes, attempts, again) in enumerate(
        [
            ("pending", 60, 0, True),
            ("pending", 0, 0, False),
            ("running", 0, 1, True),
            ("running", 0, 3, True),
            ("retrying", 3, 1, True),
            ("incomplete", 60, 0, False),
            ("awaiting_production", 0, 0, True),
            ("completed", 60, 1, False),
            ("failed", 60, 1, False),
            ("awaiting_approval", 60, 1, False),
            ("running", 0, 1, False),  # another process has the lock
        ]
    ):
        when = (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat()
        onboarding = Onboarding(f"lab_{number}", "/in/lab", "abc", state, attempts=attempts, failures=1)
        store.write(onboarding, updated_at=when)
        expected |= {f"lab_{number}"} if again else set()
    with store.lock("lab_10", wait=False):
        message = reconcile(return_state=True).message
    assert set(reported) == expected
    assert message.count("was interrupted") == len(expected)
    with store.lock("lab_10", wait=False):
        assert reconcile(return_state=True).message == "Nothing to do."  # they are pending now


def test_an_onboarding_whose_run_waits_is_not_requested_again(copied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[str] = []
    monkeypatch.setattr("flows.reconcile.emit", lambda _event, _resource, payload: reported.append(payload["lab"]))
    store = open_workspace(load_settings()).onboarding
    when = (datetime.now(UTC) - timedelta(minutes=60)).isoformat()
    for lab in ("waits", "lost"):
        store.write(Onboarding(lab, f"/in/{lab}", "abc", "pending"), updated_at=when)
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(onboard, parameters={"folder": "/in/waits"}, state=Scheduled())
        reconcile(return_state=True)
        client.delete_flow_run(run.id)
    assert reported == ["lost"]


def test_a_request_without_result_is_repeated_with_back_off(copied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its event was lost, or its run could not even record that it began, such as on a full disk."""
    reported: list[str] = []
    monkeypatch.setattr("flows.reconcile.emit", lambda _event, _resource, payload: reported.append(payload["lab"]))
    store = open_workspace(load_settings()).onboarding
    with get_client(sync_client=True) as client:
        client.create_flow_run(onboard, parameters={"folder": "/in/lab"}, state=Failed())
    store.write(Onboarding("lab", "/in/lab", "abc", "pending"))
    delays = []
    for _ in range(5):
        onboarding = store.read("lab")
        for minutes in (1, 3, 5, 9, 17):
            store.write(onboarding, updated_at=(datetime.now(UTC) - timedelta(minutes=minutes)).isoformat())
            reconcile(return_state=True)
            if reported:
                delays.append(minutes)
                break
        reported.clear()
    assert delays == [3, 3, 3, 5, 9]


def test_a_full_disk_of_one_onboarding_does_not_concern_the_others(
    copied: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[str] = []
    monkeypatch.setattr("flows.reconcile.emit", lambda _event, _resource, payload: reported.append(payload["lab"]))
    store = open_workspace(load_settings()).onboarding
    for lab in ("first", "second"):
        onboarding = Onboarding(lab, f"/in/{lab}", "abc", "retrying", failures=1)
        store.write(onboarding, updated_at="2026-11-01T00:00:00+00:00")
    write = OnboardingStore.write

    def full(self: OnboardingStore, onboarding: Onboarding, **changes: Any) -> Onboarding:
        if onboarding.lab == "first":
            raise NoSpaceError("the disk is full")
        return write(self, onboarding, **changes)

    monkeypatch.setattr(OnboardingStore, "write", full)
    assert reconcile(return_state=True).is_completed()
    assert reported == ["second"]


def test_reconcile_applies_promotions(copied: Any) -> None:
    copied.registry.versions.set_alias("production", 1)
    state = reconcile(return_state=True)
    assert state.is_completed()
    assert "Version 1 is in production" in state.message


def test_rejects_missing_folder(fresh: Path, tmp_path: Path) -> None:
    with pytest.raises(LabError):
        read_incoming_folder(tmp_path / "absent")
