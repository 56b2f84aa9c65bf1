"""Notify people of runs that failed or crashed."""

from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort

from flows.service.lost_runs import our_deployments
from flows.service.notifications import notify_people
from microseg.config.settings import Settings

__all__ = ["notify_failed_runs"]


def notify_failed_runs(client: SyncPrefectClient, settings: Settings) -> None:
    """Notify people of the failed and crashed runs of the last day, of each once.

    Scheduled runs that fail for the same reason again and again are reported once a day.

    Args:
        client: Client of the Prefect server.
        settings: State the addresses.
    """
    if not settings.params.notify:
        return
    names = {it.id: it.name for it in our_deployments(client)}
    if not names:
        return
    selected = FlowRunFilter.model_validate(
        {
            "deployment_id": {"any_": list(names)},
            "state": {"type": {"any_": [StateType.FAILED, StateType.CRASHED]}},
            "end_time": {"after_": datetime.now(UTC) - timedelta(days=1)},
        }
    )
    for run in client.read_flow_runs(flow_run_filter=selected, sort=FlowRunSort.END_TIME_DESC, limit=50):
        deployment = names.get(run.deployment_id or run.id, "")
        message = (run.state.message if run.state else None) or "See its log."
        notify_people(
            settings,
            f"microseg: {run.name} {(run.state_name or 'failed').lower()}",
            f"{message}\nThe run is {run.id} of the deployment {deployment}.",
            identity=_identity(run, deployment, message),
        )


def _identity(run: FlowRun, deployment: str, message: str) -> str:
    if run.auto_scheduled and run.end_time:
        return f"{deployment}#{message}#{run.end_time:%Y-%m-%d}"
    return f"{run.id}#{run.state.id if run.state else ''}"
