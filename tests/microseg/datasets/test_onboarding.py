"""State of the onboarding of a lab's incoming dataset, and what follows from a fault."""

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from microseg.datasets.incoming import IncomingDataset
from microseg.datasets.onboarding import (
    MAX_CRASHES,
    Onboarding,
    OnboardingStore,
    after_error,
    after_interruption,
    after_lost_run,
    is_due,
    new_onboarding,
    requested_again,
    retry_delay,
)
from microseg.errors import LabError, RegistryUnavailableError


def test_store_keeps_the_state_of_each_lab(tmp_path: Path) -> None:
    store = OnboardingStore(tmp_path / "onboarding_store")
    assert store.read("lab_c") is None
    onboarding = store.write(Onboarding("lab_c", "/in/lab_c", "abc", "pending"))
    assert onboarding.updated_at
    store.write(onboarding, state="completed", candidate=3)
    read = store.read("lab_c")
    assert read is not None
    assert (read.state, read.candidate, read.fingerprint) == ("completed", 3, "abc")
    assert store.read_all() == [read]


@pytest.mark.parametrize("content", ["{}", "", "[1]", '{"lab": ', "\x00\x00", '{"lab": "lab_c", "updated_at": "soon"}'])
def test_damaged_state_is_set_aside(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    store = OnboardingStore(tmp_path)
    store.write(Onboarding("lab_d", "/in/lab_d", "abc", "pending"))
    (tmp_path / "lab_c.json").write_text(content)
    assert [onboarding.lab for onboarding in store.read_all()] == ["lab_d"]
    assert (tmp_path / "lab_c.json.damaged").read_text() == content
    assert "was set aside" in caplog.text
    assert store.read("lab_c") is None


def test_state_of_another_version_of_microseg_is_read(tmp_path: Path) -> None:
    older = {
        "lab": "lab_c",
        "folder": "/in",
        "fingerprint": "abc",
        "state": "failed",
        "updated_at": "2026-01-01T00:00:00",
    }
    for number, stated in enumerate((older, older | {"invented_later": 1})):
        (tmp_path / "lab_c.json").write_text(json.dumps(stated | {"attempts": number}))
        onboarding = OnboardingStore(tmp_path).read("lab_c")
        assert onboarding is not None
        assert (onboarding.state, onboarding.attempts, onboarding.failures) == ("failed", number, 0)


# ---- what follows from a fault


RUNNING = Onboarding("lab_c", "/in/lab_c", "abc", "running", attempts=1, failures=1, crashes=1, flow_run_id="a run")
AWAY = RegistryUnavailableError("the registry cannot be reached")


def test_faults_that_pass_are_retried_with_increasing_delay() -> None:
    delays = [retry_delay(failures).total_seconds() / 60 for failures in range(10)]
    assert delays == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert retry_delay(10**6) == timedelta(hours=1)
    onboarding = RUNNING
    for number in range(1, 200):  # an outage of days
        onboarding = after_error(
            replace(onboarding, state="running", failures=number, crashes=onboarding.crashes + 1), AWAY
        )
        assert (onboarding.state, onboarding.crashes) == ("retrying", 0)
    assert onboarding.message == "the registry cannot be reached. It is tried again in 60 minutes."


def test_faults_that_stay_fail() -> None:
    onboarding = after_error(RUNNING, LabError("no usable image"))
    assert (onboarding.state, onboarding.message, onboarding.failures) == ("failed", "no usable image", 0)


def test_unexpected_errors_and_deaths_are_retried_ten_times() -> None:
    for follow in (lambda it: after_error(it, RuntimeError("CUDA out of memory")), after_lost_run):
        onboarding, runs = RUNNING, 0
        while onboarding.state != "failed":
            runs += 1
            onboarding = follow(replace(onboarding, state="running", crashes=runs, failures=runs))
        assert runs == MAX_CRASHES
    assert "10 runs in a row died, the last one was a run." in onboarding.message


def test_run_that_is_stopped_is_not_counted_as_failure() -> None:
    onboarding = RUNNING
    for _ in range(50):
        onboarding = after_interruption(replace(onboarding, state="running", failures=1, crashes=1))
        assert (onboarding.state, onboarding.failures, onboarding.crashes) == ("retrying", 0, 0)


@pytest.mark.parametrize(
    ("waiting", "minutes", "due"),
    [(True, 60, False), (False, 1, False), (False, 3, True), (None, 3, False), (None, 16, True), (True, -300, False)],
)
def test_a_lost_request_is_repeated_soon_and_a_waiting_run_is_not(
    waiting: bool | None, minutes: int, due: bool
) -> None:
    now = datetime(2026, 11, 26, 12, tzinfo=UTC)
    onboarding = replace(RUNNING, state="pending", updated_at=(now - timedelta(minutes=minutes)).isoformat())
    assert is_due(onboarding, now, production=True, waiting=waiting) == due


@pytest.mark.parametrize(
    ("state", "failures", "minutes", "production", "due"),
    [
        ("pending", 0, 1, True, False),
        ("pending", 0, 16, True, True),
        ("running", 1, 0, True, True),
        ("running", 4, 3, True, False),
        ("running", 4, 5, True, True),
        ("retrying", 3, 3, True, False),
        ("retrying", 3, 5, True, True),
        ("retrying", 3, -300, True, True),  # the clock was set back
        ("pending", 0, -300, True, True),
        ("awaiting_production", 0, 0, False, False),
        ("awaiting_production", 0, 0, True, True),
        ("completed", 0, 999, True, False),
        ("already_suited", 0, 999, True, False),
        ("failed", 0, 999, True, False),
        ("awaiting_approval", 0, 999, True, False),
    ],
)
def test_when_another_run_starts(state: str, failures: int, minutes: int, production: bool, due: bool) -> None:
    now = datetime(2026, 11, 26, 12, tzinfo=UTC)
    updated = (now - timedelta(minutes=minutes)).isoformat()
    onboarding = replace(RUNNING, state=state, failures=failures, updated_at=updated)
    assert is_due(onboarding, now, production=production) is due


def test_only_requests_without_result_wait_longer_each_time() -> None:
    onboarding = Onboarding("lab_c", "/in/lab_c", "abc", "retrying", failures=1)
    onboarding = requested_again(onboarding)
    assert (onboarding.state, onboarding.failures, onboarding.message) == ("pending", 1, "")
    now = datetime(2026, 1, 1, tzinfo=UTC)
    waits = []
    for _ in range(8):
        passed = (timedelta(minutes=it) for it in range(99))
        states = ((it, replace(onboarding, updated_at=(now - it).isoformat())) for it in passed)
        waits.append(next(it for it, state in states if is_due(state, now, production=True, waiting=False)))
        onboarding = requested_again(onboarding)
    assert [it.total_seconds() / 60 for it in waits] == [3, 3, 5, 9, 17, 33, 61, 61]
    assert "has not recorded that it began" in onboarding.message
    assert onboarding.crashes == 0


def test_datasets_of_one_lab_in_several_folders_are_told_apart() -> None:
    one, two = (IncomingDataset(Path(f"/in/{name}"), None, name, 1, 0, "") for name in "ab")
    onboarding = replace(new_onboarding(one), state="completed", candidate=3)
    assert onboarding.knows(one)
    assert not onboarding.knows(two)
    second = onboarding.following(two)
    assert (second.lab, second.folder, second.state, second.candidate) == ("a", "/in/b", "pending", None)
    assert second.knows(one)
    assert second.knows(two)
    changed = replace(one, fingerprint="changed")
    assert not second.knows(changed)
    assert second.following(changed).earlier == {"/in/b": "b"}


# ---- locks


def test_lock_is_released_when_its_process_dies(tmp_path: Path) -> None:
    store = OnboardingStore(tmp_path)
    hold = (
        "import sys, time; from pathlib import Path; from microseg.datasets.onboarding import OnboardingStore\n"
        "with OnboardingStore(Path(sys.argv[1])).lock('lab_c', wait=False) as locked:\n"
        "    print(locked, flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with store.lock("lab_c", wait=False) as locked:
            assert not locked
        with store.lock("lab_d", wait=False) as locked:
            assert locked
    finally:
        other.kill()
        other.wait()
    with store.lock("lab_c", wait=False) as locked:
        assert locked
