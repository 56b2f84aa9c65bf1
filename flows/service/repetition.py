"""Whether a run whose process is gone starts again; decided here only."""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import AwaitingRetry, Cancelled, Crashed

__all__ = ["IN_PROGRESS", "MAX_CRASHES", "end_or_repeat", "why_not_repeated"]

IN_PROGRESS = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)
"""Types of the states in which a process should work on a run."""

MAX_CRASHES = 3
"""A run that crashes more often is not started again."""

_NOT_REPEATED = ("promote", "rollback")  # once they began: a second rollback would go back one version more
_STOPPED = "The service was stopped."  # of a state, Prefect keeps its type, name and message only


def why_not_repeated(deployment: str, states: Sequence[State[Any]]) -> str:
    """Why a run must not start again; empty if it may.

    Args:
        deployment: Name of its deployment.
        states: All states that it had, in order. A crash because the service was stopped does not count.
    """
    if deployment in _NOT_REPEATED and any(it.is_running() for it in states):
        return "it had begun; see microseg history"
    crashes = sum(it.is_crashed() and not _is_stop(next_one) for it, next_one in zip_longest(states, states[1:]))
    return f"it has crashed {crashes} times" if crashes > MAX_CRASHES else ""


def _is_stop(state: State[Any] | None) -> bool:
    """Whether the service set this state when it stopped; where the process still reported its end, after a crash."""
    return state is not None and (state.message or "").startswith(_STOPPED)


def end_or_repeat(client: SyncPrefectClient, run: FlowRun, deployment: str, *, stopped: bool = False) -> str:
    """End a run whose process is gone, and let the same run start again if it may. Its concurrency slot is freed.

    Args:
        client: Client of the server.
        run: The run: in progress, or crashed.
        deployment: Name of its deployment.
        stopped: The service ended the process, because it stops.

    Returns:
        What was done.
    """
    _end_subflows(client, run)
    if run.state_type == StateType.CANCELLING:
        message = "The process of this run is gone, after it was cancelled."
        client.set_flow_run_state(run.id, Cancelled(message=message), force=True)
        return f"{run.name} was being cancelled, and its process is gone: cancelled."
    states = client.read_flow_run_states(run.id)
    if stopped:
        reason = _STOPPED
        states.append(AwaitingRetry(message=reason))
    elif run.state_type == StateType.CRASHED:
        message = (run.state.message if run.state else None) or "It crashed."
        reason = message.partition(" It is not repeated")[0]
    else:
        reason = f"The process of this run is gone; it was {run.state_name or 'in progress'}."
        if run.state_type == StateType.RUNNING:
            states.append(Crashed(message=reason))
    if why := why_not_repeated(deployment, states):
        reason = f"{reason} It is not repeated: {why}."
        if run.state_type != StateType.CRASHED:
            client.set_flow_run_state(run.id, Crashed(message=reason), force=True)
        return f"{run.name}: {reason}"
    if run.state_type == StateType.RUNNING and not stopped:
        client.set_flow_run_state(run.id, states[-1], force=True)
    reason = f"{reason} It is queued again."
    now = datetime.now(UTC)
    # at its first time, so that it does not wait for hours if the clock is ahead now, and set back later
    due = min(run.expected_start_time or now, now)
    client.set_flow_run_state(run.id, AwaitingRetry(scheduled_time=due, message=reason), force=True)
    return f"{run.name}: {reason}"


def _end_subflows(client: SyncPrefectClient, run: FlowRun) -> None:
    selected = {"parent_flow_run_id": {"any_": [run.id]}, "state": {"type": {"any_": list(IN_PROGRESS)}}}
    for subflow in client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(selected), limit=200):
        _end_subflows(client, subflow)
        client.set_flow_run_state(subflow.id, Crashed(message="The process of this run is gone."), force=True)
