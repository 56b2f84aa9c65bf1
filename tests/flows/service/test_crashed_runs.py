"""Runs whose process died are queued again, a few times; not promotions that began."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.states import AwaitingRetry, Crashed, Pending, Running, State

from flows.service import crashed_runs, lost_runs
from flows.service.crashed_runs import CrashedRuns
from flows.service.lost_runs import HOST_LABEL

HERE, DEPLOYMENT = "this/1", uuid4()
DIED = Crashed(message="Process exited with status code: -9")


@dataclass
class Client:
    """A Prefect server with one deployment and one run that crashed."""

    deployment: str
    states: list[State[Any]]
    host: str = HERE
    run: UUID = field(default_factory=uuid4)

    def read_deployments(self, **_: Any) -> list[Any]:
        return [SimpleNamespace(id=DEPLOYMENT, name=self.deployment)]

    def read_flow_runs(self, **_: Any) -> list[Any]:
        state = self.states[-1]
        run = SimpleNamespace(
            id=self.run, name="a run", labels={HOST_LABEL: self.host}, deployment_id=DEPLOYMENT, state=state
        )
        return [run] if state.is_crashed() else []

    def read_flow_run_states(self, _: UUID) -> list[State[Any]]:
        return self.states

    def set_flow_run_state(self, _: UUID, state: State[Any], *, force: bool) -> None:
        assert force
        self.states.append(state)


@pytest.fixture(autouse=True)
def _no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crashed_runs, "live_flow_runs", dict)
    monkeypatch.setattr(crashed_runs, "our_deployments", lambda client: client.read_deployments())


@pytest.mark.parametrize("before", [[], [Running()]])
def test_a_run_whose_process_was_killed_is_queued_again(before: list[State[Any]]) -> None:
    client = Client("segment", [Pending(), *before, DIED])
    sweep = CrashedRuns(HERE).sweep
    assert sweep(client) == ["a run crashed (Process exited with status code: -9): it is queued again."]  # type: ignore[arg-type]
    assert client.states[-1].name == AwaitingRetry().name
    assert sweep(client) == []  # type: ignore[arg-type]


def test_a_run_that_crashes_each_time_is_not_started_for_ever() -> None:
    client, crashed = Client("train", [DIED]), CrashedRuns(HERE)
    for _ in range(lost_runs.MAX_LOST):
        assert len(crashed.sweep(client)) == 1  # type: ignore[arg-type]
        client.states.append(DIED)
    assert crashed.sweep(client) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("deployment", ["promote", "rollback"])
def test_a_promotion_that_began_is_not_repeated(deployment: str) -> None:
    assert CrashedRuns(HERE).sweep(Client(deployment, [Pending(), Running(), DIED])) == []  # type: ignore[arg-type]
    assert len(CrashedRuns(HERE).sweep(Client(deployment, [Pending(), DIED]))) == 1  # type: ignore[arg-type]


def test_runs_of_another_host_and_of_a_frequent_schedule_are_left_alone() -> None:
    assert CrashedRuns(HERE).sweep(Client("segment", [DIED], host="other/1")) == []  # type: ignore[arg-type]
    assert CrashedRuns(HERE).sweep(Client("reconcile", [DIED])) == []  # type: ignore[arg-type]
