"""Prefect: the server, what runs by itself, what events start."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import version

from packaging.version import Version
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from flows.health.finding import Finding
from microseg.config.settings import Settings

__all__ = ["prefect", "schedules"]

_BATCH = "segment-scheduled/segment-scheduled"


def prefect(_: Settings) -> Iterator[Finding]:
    """Whether Prefect answers, and has the version of this machine."""
    url = PREFECT_API_URL.value()
    if not url:
        yield Finding("Prefect", "warning", "no server is named: nothing runs by itself", "set PREFECT_API_URL")
        return
    with get_client(sync_client=True) as client:
        if (fault := client.api_healthcheck()) is not None:
            yield Finding("Prefect", "error", f"{url} does not answer: {fault}", "start it, or correct PREFECT_API_URL")
            return
        served = client.api_version()
    same = Version(served).release[:2] == Version(version("prefect")).release[:2]
    said = f"{url}, version {served}"
    if same:
        yield Finding("Prefect", "ok", said)
    else:
        yield Finding(
            "Prefect", "warning", f"{said}; this machine has {version('prefect')}", "give both the same version"
        )


def schedules(settings: Settings) -> Iterator[Finding]:
    """Whether batches run by themselves, and events start what they should."""
    if not PREFECT_API_URL.value():
        return
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(_BATCH)
        except ObjectNotFound:
            yield Finding("schedules", "error", "the flows are not registered with this server", "run microseg serve")
            return
        wanted = {"deployment_id": {"any_": [deployment.id]}, "state": {"type": {"any_": ["SCHEDULED"]}}}
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(wanted), limit=5)
        automations = client.read_automations()
    if deployment.paused or not any(it.active for it in deployment.schedules):
        yield Finding(
            "schedules", "error", "the schedule of batches is paused", "start microseg serve, which resumes it"
        )
    elif not runs:
        yield Finding(
            "schedules",
            "error",
            "batches have a schedule, and no run is scheduled",
            "if the server has just started, wait a minute; else look for errors in its log: with SQLAlchemy 2.1 it "
            "never schedules any, pip install 'sqlalchemy<2.1' there",
        )
    else:
        times = [run.expected_start_time for run in runs if run.expected_start_time is not None]
        late = [time for time in times if time < datetime.now(UTC) - timedelta(minutes=10)]
        if late:
            yield Finding("schedules", "error", f"{len(late)} runs are late: nobody runs them", "run microseg serve")
        else:
            following = min(times)
            yield Finding("schedules", "ok", f"the next batch is at {following:%Y-%m-%d %H:%M} UTC")
    named = {it.name for it in automations if it.enabled}
    missing = [name for name in ("microseg: lab arrived", "microseg: promotion requested") if name not in named]
    if missing:
        yield Finding("events", "error", f"nothing waits for: {', '.join(missing)}", "restart microseg serve")
    else:
        yield Finding("events", "ok", "landings and promotions start runs")
    folder = settings.home.root / settings.params.schedule.folder
    if not folder.is_dir():
        yield Finding(
            "schedules", "warning", f"the watched folder {folder} is not there", "make it, or correct schedule.folder"
        )
