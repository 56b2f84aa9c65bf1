"""Queue the work of crashed runs again: their process died while the runner lived, and Prefect leaves them so.

A process is killed where memory is short, or it ends since the Prefect server is away when it starts. A run that failed
by an error of its own is *Failed*, and stays so.
"""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort

from flows.service.lost_runs import HOST_LABEL, MAX_LOST, NOT_REPEATED, live_flow_runs, our_deployments, requeue

__all__ = ["CrashedRuns"]

_REPEATED_SOON = ("reconcile",)  # by its schedule
_WINDOW = timedelta(days=1)


class CrashedRuns:
    """Finds the crashed runs of microseg's deployments on this host, and queues them again, each a few times.

    Args:
        host: This host, from `flows.service.lost_runs.host_name`.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._left: set[UUID] = set()

    def sweep(self, client: SyncPrefectClient) -> list[str]:
        """Queue the crashed runs of the last day again.

        Args:
            client: Client of the server.

        Returns:
            What was done, a sentence each.
        """
        names = {it.id: it.name for it in our_deployments(client)}
        if not names:
            return []
        selected = FlowRunFilter.model_validate(
            {
                "deployment_id": {"any_": list(names)},
                "state": {"type": {"any_": [StateType.CRASHED]}},
                "end_time": {"after_": datetime.now(UTC) - _WINDOW},
            }
        )
        done, live = list[str](), live_flow_runs()
        for run in client.read_flow_runs(flow_run_filter=selected, sort=FlowRunSort.END_TIME_DESC, limit=50):
            if run.id in self._left or run.id in live or run.labels.get(HOST_LABEL) != self._host:
                continue
            reason = (run.state.message if run.state else None) or "It crashed."
            if self._is_repeated(client, run, names.get(run.deployment_id or run.id, "")):
                requeue(client, run.id, reason)
                done.append(f"{run.name} crashed ({reason.rstrip('.')}): it is queued again.")
            else:
                self._left.add(run.id)
        return done

    def _is_repeated(self, client: SyncPrefectClient, run: FlowRun, deployment: str) -> bool:
        states = client.read_flow_run_states(run.id)
        if deployment in _REPEATED_SOON or sum(it.is_crashed() for it in states) > MAX_LOST:
            return False
        return deployment not in NOT_REPEATED or not any(it.is_running() for it in states)
