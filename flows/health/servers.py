"""Checks of the MLflow server and the Prefect server, for `flows.health.doctor`."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import version

import httpx
from packaging.version import Version
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from flows.health.machine import Finding
from flows.health.status import SCHEDULED_DEPLOYMENT
from flows.service.events import lab_arrived_trigger, promotion_trigger
from flows.workspace import open_workspace
from microseg.config.settings import Settings
from microseg.errors import MicrosegError
from microseg.escaping import mask_secrets
from microseg.registry.connection import is_server, server_version
from microseg.registry.version import PRODUCTION

__all__ = ["check_aliases", "check_mlflow", "check_prefect", "check_schedules", "check_webhook"]


def check_mlflow(settings: Settings) -> Iterator[Finding]:
    """Whether MLflow responds, and has the version of this machine."""
    uri = settings.environment.tracking_uri
    shown = mask_secrets(uri)
    try:
        open_workspace(settings).registry.versions.all()
    except MicrosegError as error:  # also where the server does not accept this host name
        yield Finding("MLflow", "error", str(error), "see mlflow/README.md")
        return
    if not is_server(uri):
        message = f"{shown}: a database, which sends no webhooks; reconcile finds alias changes"
        yield Finding("MLflow", "ok", message)
        return
    installed = server_version(uri)
    yield Finding("MLflow", "ok", f"{shown}, version {installed or 'unknown'}")
    if installed and Version(installed).release[:2] != Version(version("mlflow")).release[:2]:
        yield Finding(
            "MLflow",
            "warning",
            f"the server has version {installed}, this machine {version('mlflow')}",
            f"pip install mlflow=={installed}, or update the server and run `mlflow db upgrade`",
        )


def check_aliases(settings: Settings) -> Iterator[Finding]:
    """Aliases are case-sensitive, and an alias with another spelling promotes nothing, without any error."""
    workspace = open_workspace(settings)
    labs = set(workspace.datasets.known_labs)
    findings = []
    for model_version in workspace.registry.versions.all():
        for alias in model_version.aliases:
            lab = alias.removeprefix(f"{PRODUCTION}-")
            has = f"version {model_version.version} has the alias {alias!r}"
            if lab != alias:
                if lab not in labs:
                    action = f"labs are {', '.join(sorted(labs)) or 'none'}: set {PRODUCTION}-<lab>, remove this alias"
                    findings.append(Finding("aliases", "warning", f"{has}, but there is no lab {lab!r}", action))
            elif alias != PRODUCTION and alias.strip().lower().startswith("prod"):
                action = f"set the alias {PRODUCTION!r}, in lower case, and remove this one"
                findings.append(Finding("aliases", "error", f"{has}, which promotes nothing", action))
    for change in workspace.registry.production.pending_changes():
        message = (
            f"pending alias change: {change.alias} from version {change.active_version or '–'} to "
            f"{change.requested_version or '–'}"
        )
        action = "microseg service validate-promotion, or check that microseg serve runs"
        findings.append(Finding("aliases", "warning", message, action))
    if not findings:
        current = workspace.production()
        message = f"version {current.version} is in production" if current else "no version is in production yet"
        findings.append(Finding("aliases", "ok", message))
    yield from findings


def check_webhook(settings: Settings) -> Iterator[Finding]:
    """Whether MLflow's webhooks arrive."""
    if not is_server(settings.environment.tracking_uri):
        return
    webhooks = open_workspace(settings).registry.webhooks
    subscriptions = webhooks.subscriptions()
    if not subscriptions:
        message = "MLflow has no webhook: alias changes are found later, by reconcile"
        yield Finding("webhook", "warning", message, "run microseg serve")
        return
    url, active = subscriptions[0]
    if not active:
        yield Finding("webhook", "error", f"the webhook to {url} is disabled", "run microseg serve, which enables it")
        return
    try:
        with _http() as client:
            client.get(url.removesuffix("/mlflow") + "/health").raise_for_status()
    except httpx.HTTPError as error:
        yield Finding(
            "webhook",
            "error",
            f"MLflow sends webhooks to {url}, where nothing responds ({type(error).__name__})",
            "run microseg serve, with MICROSEG_WEBHOOK_URL as MLflow's server reaches it",
        )
        return
    status, message = webhooks.send_test()  # only the server knows whether it can decrypt the secret
    if status is not None and status < 400:
        yield Finding("webhook", "ok", f"a signed test webhook to {url} was accepted")
    else:
        yield Finding(
            "webhook",
            "error",
            f"a test webhook to {url} failed: {status or ''} {message}".strip(),
            "start MLflow's server with the same MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY each time, and with "
            "MLFLOW_WEBHOOK_ALLOWED_SCHEMES=http,https and MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true where needed; then "
            "restart microseg serve",
        )


def check_prefect(_: Settings) -> Iterator[Finding]:
    """Whether Prefect responds, and has the version of this machine."""
    url = PREFECT_API_URL.value()
    if not url:
        message = "no server is set: nothing runs on a schedule or on events"
        yield Finding("Prefect", "warning", message, "set PREFECT_API_URL")
        return
    with get_client(sync_client=True) as client:
        if (error := client.api_healthcheck()) is not None:
            message = f"{url} does not respond: {error}"
            yield Finding("Prefect", "error", message, "start it, or correct PREFECT_API_URL")
            return
        installed = client.api_version()
    message = f"{url}, version {installed}"
    if Version(installed).release[:2] == Version(version("prefect")).release[:2]:
        yield Finding("Prefect", "ok", message)
    else:
        message = f"{message}; this machine has {version('prefect')}"
        yield Finding("Prefect", "warning", message, "install the same version on both")


def check_schedules(settings: Settings) -> Iterator[Finding]:
    """Whether scheduled batches have runs, and events start flows."""
    if not PREFECT_API_URL.value():
        return
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(SCHEDULED_DEPLOYMENT)
        except ObjectNotFound:
            yield Finding("schedules", "error", "the flows have no deployments on this server", "run microseg serve")
            return
        scheduled = {"deployment_id": {"any_": [deployment.id]}, "state": {"type": {"any_": ["SCHEDULED"]}}}
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(scheduled), limit=5)
        enabled = {automation.name for automation in client.read_automations() if automation.enabled}
    if deployment.paused or not any(schedule.active for schedule in deployment.schedules):
        yield Finding("schedules", "error", "the schedule of batches is paused", "run microseg serve, which resumes it")
    elif not runs:
        yield Finding(
            "schedules",
            "error",
            "batches have a schedule, but no run is scheduled",
            "if the server has just started, wait a minute; else look for errors in its log: with SQLAlchemy 2.1 it "
            "never schedules a run, pip install 'sqlalchemy<2.1' there",
        )
    else:
        times = [run.expected_start_time for run in runs if run.expected_start_time is not None]
        late = [time for time in times if time < datetime.now(UTC) - timedelta(minutes=10)]
        if late:
            yield Finding("schedules", "error", f"{len(late)} runs are late: nothing runs them", "run microseg serve")
        else:
            yield Finding("schedules", "ok", f"the next batch is at {min(times):%Y-%m-%d %H:%M} UTC")
    if missing := {str(lab_arrived_trigger().name), str(promotion_trigger().name)} - enabled:
        message = f"no automation is enabled for: {', '.join(sorted(missing))}"
        yield Finding("events", "error", message, "restart microseg serve")
    else:
        yield Finding("events", "ok", "incoming labs and promotions start runs")
    folder = settings.home.root / settings.params.schedule.folder
    if not folder.is_dir():
        message = f"the scheduled folder {folder} does not exist"
        yield Finding("schedules", "warning", message, "create it, or correct schedule.folder")


def _http() -> httpx.Client:
    return httpx.Client(timeout=10, trust_env=False)
