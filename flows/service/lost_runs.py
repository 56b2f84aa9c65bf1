"""Find runs whose process is gone; `flows.service.repetition` decides whether they start again.

Prefect does not notice that a runner was stopped or killed: its runs stay *Submitting* or *Running*, hold the
concurrency slot of their deployment, and all later runs wait. The runner marks each run that it takes with its host
(`HOST_LABEL`), so that on the same machine a run without a process is known to be lost. For runs of other machines,
heartbeats decide; they are compared over a time in which the server responded, by this machine's own clock.

A process that does not begin its run is ended: after the clock was set back, the server tells it to wait until the time
for which the run was scheduled.

A run is *Crashed* if its process died while the runner lived, where memory is short, or if the Prefect server was away
when it started: Prefect leaves it so. A run that failed by an error of its own is *Failed*, and stays so.
"""

import os
import socket
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psutil
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter, EventResourceFilter
from prefect.exceptions import ObjectNotFound

from flows.service.events import TAG
from flows.service.repetition import IN_PROGRESS, end_or_repeat
from microseg.config.environment import Home

__all__ = [
    "HOST_LABEL",
    "LostRuns",
    "host_name",
    "live_flow_runs",
    "our_deployments",
    "repeat_interrupted",
    "runs_in_progress",
    "silent_for",
    "stuck_slots",
]

HOST_LABEL = "microseg.host"
"""Label of a flow run: the host whose runner took it; see `host_name`."""

HEARTBEAT_SECONDS = 30
"""Seconds between two heartbeats of a run."""

_HOST_FILE = "service-id"
_OVERDUE = ("Late", "AwaitingConcurrencySlot")  # by the server's clock
_ENDING = 30.0  # seconds: time in which a runner of this host has to report that a process has ended
_UNMARKED = 60.0  # seconds: time in which a runner has to mark a run that it took
_SUBMITTING = 600.0  # seconds: time in which a machine has to start a process, and that has to begin its run
_SILENT_ELSEWHERE = 300.0  # seconds without a heartbeat
_CRASHED_SINCE = timedelta(days=1)


def host_name(home: Home, *, create: bool = True) -> str:
    """Name of this host and home, for `HOST_LABEL`; two machines with the same name are told apart by their homes.

    Args:
        home: The home.
        create: Create the part that is kept in the home; otherwise the result is empty where it is missing.
    """
    if not create and not (home.secrets / _HOST_FILE).is_file():
        return ""
    return f"{socket.gethostname()}/{home.secret(_HOST_FILE, lambda: os.urandom(4).hex())}"


def live_flow_runs() -> dict[UUID, psutil.Process]:
    """The flow runs that have a process on this machine."""
    found: dict[UUID, psutil.Process] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError, ValueError):
            if any("prefect" in part for part in process.cmdline()):
                identity = process.environ().get("PREFECT__FLOW_RUN_ID")
                if identity and process.status() != psutil.STATUS_ZOMBIE:
                    found.setdefault(UUID(identity), process)
    return found


def our_deployments(client: SyncPrefectClient) -> list[DeploymentResponse]:
    """The deployments of microseg on a Prefect server."""
    return client.read_deployments(deployment_filter=DeploymentFilter.model_validate({"tags": {"all_": [TAG]}}))


def runs_in_progress(client: SyncPrefectClient, deployments: Sequence[DeploymentResponse]) -> list[FlowRun]:
    """The runs of deployments that a process should work on: pending, running or being cancelled."""
    return _runs(client, deployments, IN_PROGRESS)


def _runs(
    client: SyncPrefectClient, deployments: Sequence[DeploymentResponse], types: Sequence[StateType], **others: object
) -> list[FlowRun]:
    if not deployments:
        return []
    of = {"deployment_id": {"any_": [it.id for it in deployments]}, "state": {"type": {"any_": list(types)}}}
    selected = FlowRunFilter.model_validate(of | others)
    found: list[FlowRun] = []
    while page := client.read_flow_runs(
        flow_run_filter=selected, sort=FlowRunSort.EXPECTED_START_TIME_ASC, limit=200, offset=len(found)
    ):
        found += page
        if len(page) < 200:
            break
    return found


def silent_for(client: SyncPrefectClient, run: FlowRun) -> timedelta | None:
    """Time since the last heartbeat of a run; None if it has never sent one."""
    event = _last_heartbeat(client, run)
    return None if event is None else datetime.now(UTC) - event[1]


def _last_heartbeat(client: SyncPrefectClient, run: FlowRun) -> tuple[UUID, datetime] | None:
    selected = EventFilter(
        occurred=EventOccurredFilter(since=datetime.now(UTC) - timedelta(days=7)),
        event=EventNameFilter(name=["prefect.flow-run.heartbeat"]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
    )
    events = client.read_events(selected, limit=1).events
    return (events[0].id, events[0].occurred) if events else None


@dataclass
class LostRuns:
    """Finds the lost and crashed runs of microseg's deployments, and lets them start again; keeps what it saw before.

    Args:
        host: This host, from `host_name`.
    """

    host: str
    _seen: dict[UUID, tuple[object, float]] = field(default_factory=dict, init=False)
    _slots_seen: dict[UUID, int] = field(default_factory=dict, init=False)

    def sweep(self, client: SyncPrefectClient, *, starting: bool = False, working: Collection[UUID] = ()) -> list[str]:
        """End the lost runs, queue them and crashed ones again, free slots, and remove superseded scheduled runs.

        Args:
            client: Client of the server.
            starting: No runner of this host has started a run yet, so that none of its runs can be in progress.
            working: Runs that the runners of this process are starting, or wait for.

        Returns:
            What was done, a sentence each.
        """
        deployments = our_deployments(client)
        names = {it.id: it.name for it in deployments}
        recent = {"after_": datetime.now(UTC) - _CRASHED_SINCE}
        runs = runs_in_progress(client, deployments)
        runs += _runs(client, deployments, [StateType.CRASHED], end_time=recent)
        processes = live_flow_runs()
        done = []
        for run in runs:
            if run.id in processes:
                if self._does_not_begin(run):
                    with suppress(psutil.NoSuchProcess):  # it has ended by itself
                        processes[run.id].kill()  # its runner reports it as crashed, and it starts again
                    done.append(f"{run.name} has not begun for {_SUBMITTING / 60:.0f} minutes: its process is ended.")
            elif run.id in working:
                self._seen.pop(run.id, None)
            elif self._is_lost(client, run, starting=starting):
                done.append(end_or_repeat(client, run, names.get(run.deployment_id or run.id, "")))
        current = {run.id for run in runs}
        self._seen = {identity: seen for identity, seen in self._seen.items() if identity in current}
        return [*done, *self._free_slots(client, deployments), *_remove_superseded(client, deployments)]

    def forget(self) -> None:
        """Forget how long runs have been silent, since the server did not respond: nobody could report."""
        self._seen.clear()

    def _does_not_begin(self, run: FlowRun) -> bool:
        """Whether the process of a run of this host has not begun it for too long."""
        if run.state_type != StateType.PENDING or run.labels.get(HOST_LABEL) != self.host:
            self._seen.pop(run.id, None)
            return False
        return self._unchanged_for(run, run.state_id) >= _SUBMITTING

    def _unchanged_for(self, run: FlowRun, sign: object) -> float:
        """Seconds for which a run has shown the same sign."""
        now = time.monotonic()
        before, since = self._seen.get(run.id, (None, now))
        self._seen[run.id] = sign, since if before == sign else now
        return now - self._seen[run.id][1]

    def _is_lost(self, client: SyncPrefectClient, run: FlowRun, *, starting: bool) -> bool:
        pending = run.state_type == StateType.PENDING
        here = run.labels.get(HOST_LABEL) == self.host
        sign: tuple[object, object] = (run.state_id, None)
        if run.state_type == StateType.CRASHED:
            new = self._seen.get(run.id, (None, 0))[0] != sign
            self._unchanged_for(run, sign)
            return here and new
        if here:
            if starting:
                return True
            patience = _ENDING
        elif pending:
            marked = HOST_LABEL in run.labels or run.work_pool_name is not None
            patience = _SUBMITTING if marked else _UNMARKED
        else:
            heartbeat = _last_heartbeat(client, run)
            if heartbeat is None and run.work_pool_name is not None:
                return False  # a worker without heartbeats: nothing is known of it
            sign, patience = (run.state_id, heartbeat), _SILENT_ELSEWHERE
        return self._unchanged_for(run, sign) >= patience

    def _free_slots(self, client: SyncPrefectClient, deployments: Sequence[DeploymentResponse]) -> list[str]:
        """Free concurrency slots that no run holds, if that was so at the sweep before, too."""
        done, seen = [], {}
        for deployment, stuck in stuck_slots(client, deployments):
            if self._slots_seen.get(deployment.id) == stuck and deployment.global_concurrency_limit is not None:
                limit = deployment.global_concurrency_limit
                update = GlobalConcurrencyLimitUpdate(active_slots=max(0, limit.active_slots - stuck))
                client.update_global_concurrency_limit(str(limit.id), update)
                done.append(f"{stuck} concurrency slots of {deployment.name}, which no run held, are free again.")
            else:
                seen[deployment.id] = stuck
        self._slots_seen = seen
        return done


def stuck_slots(
    client: SyncPrefectClient, deployments: Sequence[DeploymentResponse]
) -> list[tuple[DeploymentResponse, int]]:
    """Deployments with concurrency slots that no run holds, and how many."""
    limited = [it for it in deployments if it.global_concurrency_limit and it.global_concurrency_limit.active_slots]
    holders = [run.deployment_id for run in runs_in_progress(client, limited)]
    counts = [(it, it.global_concurrency_limit.active_slots - holders.count(it.id)) for it in limited]  # type: ignore[union-attr]
    return [(deployment, stuck) for deployment, stuck in counts if stuck > 0]


def repeat_interrupted(client: SyncPrefectClient, runs: Collection[UUID], host: str) -> list[str]:
    """Let runs start again that were interrupted because the service stops.

    Args:
        client: Client of the server.
        runs: Runs that were being taken, or whose processes were ended.
        host: This host, from `host_name`: its runs that have no process yet start again, too.

    Returns:
        What was done, a sentence each.
    """
    deployments = our_deployments(client)
    names = {it.id: it.name for it in deployments}
    waiting = [it for it in runs_in_progress(client, deployments) if it.labels.get(HOST_LABEL) == host]
    interrupted = {run.id: run for run in waiting if run.state_type != StateType.CANCELLING}
    for identity in runs:
        with suppress(ObjectNotFound):
            run = client.read_flow_run(identity)
            if run.labels.get(HOST_LABEL, host) == host:  # not taken by another host in this moment
                interrupted[identity] = run
    types = (StateType.PENDING, StateType.RUNNING, StateType.CRASHED)
    return [
        end_or_repeat(client, run, names.get(run.deployment_id or run.id, ""), stopped=True)
        for run in interrupted.values()
        if run.state_type in types
    ]


def _remove_superseded(client: SyncPrefectClient, deployments: Sequence[DeploymentResponse]) -> list[str]:
    """Of the overdue scheduled runs of a deployment, keep the latest: each does what the earlier ones would do."""
    done = []
    for deployment in deployments:
        if not deployment.schedules:
            continue
        overdue = [
            run
            for run in _runs(client, [deployment], (StateType.SCHEDULED,))
            if run.auto_scheduled and run.state_name in _OVERDUE
        ]
        for run in overdue[:-1]:
            with suppress(ObjectNotFound):
                client.delete_flow_run(run.id)
        if len(overdue) > 1:
            done.append(f"{len(overdue) - 1} overdue runs of {deployment.name} are removed: one does the same.")
    return done
