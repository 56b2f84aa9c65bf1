"""Which runs start again after their process is gone."""

from typing import Any

import pytest
from prefect.states import AwaitingRetry, Crashed, Pending, Running, State

from flows.service.repetition import MAX_CRASHES, why_not_repeated

DIED, STOPPED = Crashed(message="Process exited with status code: -9"), "The service was stopped. It is queued again."


@pytest.mark.parametrize("deployment", ["segment", "onboard", "promote", "rollback", "reconcile"])
def test_a_run_that_had_not_begun_starts_again(deployment: str) -> None:
    assert why_not_repeated(deployment, [Pending(), DIED]) == ""


@pytest.mark.parametrize(("deployment", "repeated"), [("segment", True), ("promote", False), ("rollback", False)])
def test_a_promotion_that_began_is_not_repeated(deployment: str, repeated: bool) -> None:
    assert (why_not_repeated(deployment, [Pending(), Running(), DIED]) == "") == repeated


def test_a_run_that_crashes_each_time_is_not_started_for_ever() -> None:
    states: list[State[Any]] = [Running(), DIED] * MAX_CRASHES
    assert why_not_repeated("train", states) == ""
    assert why_not_repeated("train", [*states, Running(), DIED]) == "it has crashed 4 times"


def test_a_stop_of_the_service_does_not_count() -> None:
    stops = [Running(), Crashed(message="SIGTERM"), AwaitingRetry(message=STOPPED)] * 5
    assert why_not_repeated("train", [*stops, Running(), DIED]) == ""
    assert why_not_repeated("train", [*stops, *[Running(), DIED] * 4])


def test_a_stop_that_ended_the_process_at_once_hides_no_crash() -> None:
    """The process could not report that it crashed."""
    stopped = [Running(), AwaitingRetry(message=STOPPED)]
    assert why_not_repeated("train", [*[Running(), DIED] * 4, *stopped]) == "it has crashed 4 times"
    assert why_not_repeated("train", [*stopped, *[Running(), DIED] * 4]) == "it has crashed 4 times"
