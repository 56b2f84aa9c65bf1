"""Runs whose process is gone are ended and queued again; those of other machines are left to them."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psutil
import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.states import Cancelling, Completed, Crashed, Failed, Pending, Running, Scheduled, Submitting

from flows.service import lost_runs
from flows.service.lost_runs import HOST_LABEL, LostRuns, repeat_interrupted, stuck_slots
from flows.service.repetition import end_or_repeat
from flows.service.run_names import name_scheduled_runs, telling_name

HERE = "this/1"


@flow(name="quick-test")
def quick(lab: str = "lab_a") -> None:
    """Never runs here."""


@pytest.fixture
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def deployment(client: SyncPrefectClient) -> Iterator[DeploymentResponse]:
    """With one run at a time, as `reconcile`."""
    made = quick.to_deployment(f"quick {uuid4()}", tags=["microseg"], concurrency_limit=1)
    identity = made.apply()
    yield client.read_deployment(identity)
    client.delete_deployment(identity)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    time = {"now": 0.0}
    monkeypatch.setattr(lost_runs.time, "monotonic", lambda: time["now"])
    return time


def start(
    client: SyncPrefectClient, deployment: DeploymentResponse, *states: Any, host: str | None = HERE, **options: Any
) -> FlowRun:
    """A run that goes through states."""
    run = client.create_flow_run_from_deployment(deployment.id, **options)
    for state in (Pending(), *states):
        client.set_flow_run_state(run.id, state)
    if host is not None:
        client.update_flow_run_labels(run.id, {HOST_LABEL: host})
    return client.read_flow_run(run.id)


def state_names(client: SyncPrefectClient, run: FlowRun) -> list[str]:
    return [it.name for it in sorted(client.read_flow_run_states(run.id), key=lambda it: it.timestamp)]


def active_slots(client: SyncPrefectClient, deployment: DeploymentResponse) -> int:
    return client.read_deployment(deployment.id).global_concurrency_limit.active_slots


@pytest.mark.parametrize("states", [(), (Submitting(),), (Submitting(), Running())])
def test_a_run_of_a_killed_service_starts_again_with_the_next(
    client: SyncPrefectClient, deployment: DeploymentResponse, states: tuple[Any, ...]
) -> None:
    run = start(client, deployment, *states, parameters={"lab": "lab_b"})
    assert active_slots(client, deployment) == 1
    [line] = LostRuns(HERE).sweep(client, starting=True)
    assert line == f"{run.name}: The process of this run is gone; it was {run.state_name}. It is queued again."
    after = client.read_flow_run(run.id)
    assert (after.state_name, after.parameters) == ("AwaitingRetry", {"lab": "lab_b"})
    assert after.next_scheduled_start_time == run.expected_start_time <= datetime.now(UTC)
    assert active_slots(client, deployment) == 0
    assert ("Crashed" in state_names(client, run)) == (run.state_name == "Running")
    assert client.set_flow_run_state(run.id, Pending()).status.value == "ACCEPT"  # a runner can take it


def test_a_run_that_ends_its_process_each_time_is_not_started_for_ever(
    client: SyncPrefectClient, deployment: DeploymentResponse
) -> None:
    run = start(client, deployment, Running())
    for _ in range(3):
        LostRuns(HERE).sweep(client, starting=True)
        assert client.read_flow_run(run.id).state_name == "AwaitingRetry"
        for state in (Pending(), Running()):
            client.set_flow_run_state(run.id, state)
    [line] = LostRuns(HERE).sweep(client, starting=True)
    assert line.endswith("It is not repeated: it has crashed 4 times.")
    assert client.read_flow_run(run.id).state_name == "Crashed"
    LostRuns(HERE).sweep(client)  # nor as a crashed run
    assert client.read_flow_run(run.id).state_name == "Crashed"


def test_a_run_that_crashed_often_starts_again_after_a_stop_of_the_service(
    client: SyncPrefectClient, deployment: DeploymentResponse
) -> None:
    died = [Running(), Crashed(message="it died"), Pending()]
    run = start(client, deployment, *died, *died, *died, Running(), Crashed(message="SIGTERM"))
    assert end_or_repeat(client, run, "train", stopped=True).endswith("It is queued again.")


def test_a_cancelled_run_without_process_ends(client: SyncPrefectClient, deployment: DeploymentResponse) -> None:
    run = start(client, deployment, Running(), Cancelling())
    LostRuns(HERE).sweep(client, starting=True)
    assert client.read_flow_run(run.id).state_name == "Cancelled"
    assert active_slots(client, deployment) == 0


@pytest.mark.parametrize("name", ["promote", "rollback"])
def test_a_promotion_that_began_is_not_repeated(
    client: SyncPrefectClient, deployment: DeploymentResponse, name: str
) -> None:
    run = start(client, deployment, Running())
    assert "It is not repeated" in end_or_repeat(client, run, name)
    assert client.read_flow_run(run.id).state_name == "Crashed"
    waiting = start(client, deployment, Submitting())
    assert "queued again" in end_or_repeat(client, waiting, name)
    stopped = start(client, deployment, Running())
    assert "It is not repeated" in end_or_repeat(client, stopped, name, stopped=True)


def test_a_run_whose_process_crashed_is_queued_again_once(
    client: SyncPrefectClient, deployment: DeploymentResponse, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(client, deployment, Running(), Crashed(message="Process exited with status code: -9"))
    other = start(client, deployment, Crashed(), host="other/1")
    lost = LostRuns(HERE)
    monkeypatch.setattr(lost_runs, "live_flow_runs", lambda: {run.id: None})  # it reports the crash just now
    assert lost.sweep(client) == []
    monkeypatch.setattr(lost_runs, "live_flow_runs", dict)
    assert lost.sweep(client) == [f"{run.name}: Process exited with status code: -9 It is queued again."]
    assert lost.sweep(client) == []
    assert [client.read_flow_run(it.id).state_name for it in (run, other)] == ["AwaitingRetry", "Crashed"]


def test_runs_with_a_process_or_of_another_host_go_on(
    client: SyncPrefectClient, deployment: DeploymentResponse, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = start(client, deployment, Running())
    monkeypatch.setattr(lost_runs, "live_flow_runs", lambda: {live.id: None})
    starting = client.create_flow_run_from_deployment(deployment.id)
    client.set_flow_run_state(starting.id, Submitting(), force=True)
    client.update_flow_run_labels(starting.id, {HOST_LABEL: HERE})
    other = client.create_flow_run_from_deployment(deployment.id)
    client.set_flow_run_state(other.id, Running(), force=True)
    client.update_flow_run_labels(other.id, {HOST_LABEL: "other/1"})
    assert LostRuns(HERE).sweep(client, starting=True, working={starting.id}) == []
    names = [client.read_flow_run(run.id).state_name for run in (live, starting, other)]
    assert names == ["Running", "Submitting", "Running"]


def test_a_process_that_does_not_begin_its_run_is_ended(
    client: SyncPrefectClient, deployment: DeploymentResponse, monkeypatch: pytest.MonkeyPatch, clock: dict[str, float]
) -> None:
    """After the clock was set back, Prefect lets it wait for the time for which the run was scheduled."""
    runs = [start(client, deployment, host=host) for host in (HERE, "other/1")]
    runs.append(start(client, deployment, Running()))
    with ExitStack() as stack:
        processes = [stack.enter_context(subprocess.Popen(["sleep", "600"])) for _ in runs]
        for process in processes:
            stack.callback(process.kill)
        found = {run.id: psutil.Process(it.pid) for run, it in zip(runs, processes, strict=True)}
        monkeypatch.setattr(lost_runs, "live_flow_runs", lambda: found)
        lost = LostRuns(HERE)
        assert lost.sweep(client) == []
        clock["now"] = 599.0
        assert lost.sweep(client) == []
        clock["now"] = 600.0
        assert lost.sweep(client) == [f"{runs[0].name} has not begun for 10 minutes: its process is ended."]
        assert processes[0].wait(10) == -signal.SIGKILL
        assert lost.sweep(client)  # which still sees the process that has ended
        assert [it.poll() for it in processes[1:]] == [None, None]


@pytest.mark.parametrize(
    ("host", "states", "seconds"),
    [
        (HERE, (Submitting(),), 30),
        (HERE, (Running(),), 30),
        (None, (), 60),
        ("other/1", (Submitting(),), 600),
        ("other/1", (Running(),), 300),
    ],
)
def test_a_silent_run_is_ended_after_some_time(
    client: SyncPrefectClient,
    deployment: DeploymentResponse,
    clock: dict[str, float],
    host: str | None,
    states: tuple[Any, ...],
    seconds: float,
) -> None:
    run, lost = start(client, deployment, *states, host=host), LostRuns(HERE)
    assert lost.sweep(client) == []
    clock["now"] = seconds - 1
    assert lost.sweep(client) == []
    clock["now"] = seconds
    assert len(lost.sweep(client)) == 1
    assert client.read_flow_run(run.id).state_name == "AwaitingRetry"


def test_time_without_a_server_does_not_count(
    client: SyncPrefectClient, deployment: DeploymentResponse, clock: dict[str, float]
) -> None:
    start(client, deployment, Running(), host="other/1")
    lost = LostRuns(HERE)
    lost.sweep(client)
    lost.forget()
    clock["now"] = 1000
    assert lost.sweep(client) == []


def test_a_slot_that_no_run_holds_is_freed_at_the_second_sweep(
    client: SyncPrefectClient, deployment: DeploymentResponse
) -> None:
    limit = deployment.global_concurrency_limit
    client.update_global_concurrency_limit(str(limit.id), GlobalConcurrencyLimitUpdate(active_slots=1))
    assert stuck_slots(client, [client.read_deployment(deployment.id)])[0][1] == 1
    lost = LostRuns(HERE)
    assert lost.sweep(client) == []
    assert "which no run held, are free again" in lost.sweep(client)[0]
    assert active_slots(client, deployment) == 0


def test_interrupted_runs_start_again_and_finished_ones_do_not(
    client: SyncPrefectClient, deployment: DeploymentResponse
) -> None:
    crashed = start(client, deployment, Running(), Crashed())
    done = start(client, deployment, Running(), Completed())
    failed = start(client, deployment, Running(), Failed())
    waiting = start(client, deployment, Submitting())
    requeued = repeat_interrupted(client, [crashed.id, done.id, failed.id, uuid4()], HERE)
    assert sorted(requeued) == sorted(
        f"{it.name}: The service was stopped. It is queued again." for it in (crashed, waiting)
    )
    names = [client.read_flow_run(run.id).state_name for run in (crashed, done, failed, waiting)]
    assert names == ["AwaitingRetry", "Completed", "Failed", "AwaitingRetry"]


def test_of_overdue_scheduled_runs_the_latest_remains(
    client: SyncPrefectClient, deployment: DeploymentResponse, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, runs = datetime.now(UTC), []
    for hours in (3, 2, 1):
        state = Scheduled(name="Late", scheduled_time=now - timedelta(hours=hours))
        run = client.create_flow_run_from_deployment(deployment.id, state=state)
        runs.append(run.model_copy(update={"auto_scheduled": True, "state_name": "Late"}))
    monkeypatch.setattr(lost_runs, "_runs", lambda *_: list(runs))
    scheduled = deployment.model_copy(update={"schedules": [object()]})
    assert "2 overdue runs" in lost_runs._remove_superseded(client, [scheduled])[0]
    left = [
        run for run in runs if client.read_flow_runs(flow_run_filter=lost_runs.FlowRunFilter(id={"any_": [run.id]}))
    ]
    assert [run.id for run in left] == [runs[-1].id]


def test_waiting_runs_get_telling_names(client: SyncPrefectClient, deployment: DeploymentResponse) -> None:
    run = client.create_flow_run_from_deployment(deployment.id, parameters={"lab": "lab_b"})
    named = client.create_flow_run_from_deployment(deployment.id, name="my own name")
    name_scheduled_runs(client)
    assert client.read_flow_run(run.id).name == f"{deployment.name} lab_b"
    assert client.read_flow_run(named.id).name == "my own name"
    folder = run.model_copy(update={"parameters": {"folder": "/mnt/incoming/lab_c"}})
    assert telling_name("onboard", folder) == "onboard lab_c"
    time = datetime(2026, 11, 27, 3, tzinfo=UTC)
    scheduled = run.model_copy(update={"auto_scheduled": True, "expected_start_time": time})
    assert telling_name("segment-scheduled", scheduled) == "segment-scheduled 2026-11-27 03:00 UTC"
