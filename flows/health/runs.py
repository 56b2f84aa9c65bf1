"""Checks of Prefect's queue and of notifications, for `flows.health.doctor`: what waits for a process that is gone."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.settings import PREFECT_API_URL

from flows.health.machine import Finding
from flows.service.lost_runs import (
    HOST_LABEL,
    host_name,
    live_flow_runs,
    our_deployments,
    runs_in_progress,
    silent_for,
    stuck_slots,
)
from flows.service.notifications import open_addresses, undelivered
from flows.workspace import open_workspace
from microseg.config.settings import Settings
from microseg.errors import SettingsError

__all__ = ["check_notifications", "check_onboardings", "check_queue"]

_LONG = timedelta(minutes=10)  # a run should have started, or its process should have been heard of, within this time
_RESTART = "run microseg serve, or restart it: it ends such runs and queues their work again"


def check_queue(settings: Settings) -> Iterator[Finding]:
    """Whether each run in progress has a process, each held slot a run, and whether what is due starts."""
    if not PREFECT_API_URL.value():
        return
    with get_client(sync_client=True) as client:
        deployments = our_deployments(client)
        findings = [
            *_lost_runs(client, deployments, settings),
            *(
                Finding("queue", "error", f"{stuck} concurrency slots of {it.name} are held by no run", _RESTART)
                for it, stuck in stuck_slots(client, deployments)
            ),
            *_waiting_runs(client, deployments),
        ]
    yield from findings or [Finding("queue", "ok", "every run in progress has a process, and no run waits for one")]


def _lost_runs(
    client: SyncPrefectClient, deployments: list[DeploymentResponse], settings: Settings
) -> Iterator[Finding]:
    live, host = live_flow_runs(), host_name(settings.home, create=False)
    for run in runs_in_progress(client, deployments):
        if run.id in live:
            continue
        what = f"{run.name} is {run.state_name}"
        if run.labels.get(HOST_LABEL) == host:
            if _age(run) > timedelta(minutes=2):  # it may be just starting
                yield Finding("queue", "error", f"{what}, but has no process on this machine", _RESTART)
            continue
        where = run.labels.get(HOST_LABEL, "an unknown machine")
        silent = _age(run) if run.state_type == StateType.PENDING else silent_for(client, run)
        if silent is None and _age(run) > _LONG:
            action = f"if no process works on it: prefect flow-run cancel {run.id}"
            yield Finding("queue", "warning", f"{what} on {where}, and sends no heartbeats", action)
        elif silent is not None and silent > _LONG:
            message = f"{what} on {where}, and nothing was heard of it for {silent.total_seconds() / 60:.0f} minutes"
            yield Finding("queue", "error", message, _RESTART)


def _waiting_runs(client: SyncPrefectClient, deployments: list[DeploymentResponse]) -> Iterator[Finding]:
    """Runs that are due and do not start, though nothing of the same deployment is in progress."""
    busy = {run.deployment_id for run in runs_in_progress(client, deployments)}
    for deployment in deployments:
        selected = FlowRunFilter.model_validate(
            {
                "deployment_id": {"any_": [deployment.id]},
                "state": {"name": {"any_": ["Late", "AwaitingConcurrencySlot", "AwaitingRetry"]}},
                "expected_start_time": {"before_": datetime.now(UTC) - _LONG},
            }
        )
        runs = client.read_flow_runs(flow_run_filter=selected, limit=50)
        if not runs:
            continue
        message = f"{len(runs)} runs of {deployment.name} are due for more than {_LONG.seconds // 60} minutes"
        if deployment.paused:
            message += "; the deployment is paused"
            yield Finding("queue", "error", message, "resume it in Prefect, or restart microseg serve")
        elif deployment.id in busy or busy:
            yield Finding("queue", "ok", f"{message}, and wait for the runs in progress")
        else:
            yield Finding("queue", "error", f"{message}: nothing runs them", "run microseg serve")


def _age(run: FlowRun) -> timedelta:
    return timedelta(0) if run.state is None else datetime.now(UTC) - run.state.timestamp


def check_onboardings(settings: Settings) -> Iterator[Finding]:
    """Whether a process works on each onboarding that is said to be in progress."""
    store = open_workspace(settings).onboarding
    for onboarding in store.read_all():
        if onboarding.state not in ("pending", "running"):
            continue
        since = datetime.now(UTC) - datetime.fromisoformat(onboarding.updated_at)
        with store.lock(onboarding.lab, wait=False) as free:
            pass
        if free and since > _LONG:
            message = (
                f"the onboarding of {onboarding.lab} is {onboarding.state} for {since.total_seconds() / 60:.0f} "
                "minutes, and no process of this machine works on it"
            )
            action = "check that microseg serve runs: it continues it; or microseg service reconcile"
            yield Finding("onboarding", "warning", message, action)


def check_notifications(settings: Settings) -> Iterator[Finding]:
    """Whether failures and candidates are reported to people."""
    try:
        number = len(open_addresses(settings))
    except SettingsError as error:
        yield Finding("notify", "error", str(error), "correct notify in params.yaml")
        return
    if not number:
        yield Finding("notify", "ok", "off: failures and candidates are shown by Prefect, MLflow and status only")
    elif waiting := undelivered(settings.home):
        message = f"{waiting} notifications could not be delivered yet"
        yield Finding("notify", "warning", message, "check the addresses of notify and their servers")
    else:
        yield Finding("notify", "ok", f"failures and candidates are reported to {number} addresses")
