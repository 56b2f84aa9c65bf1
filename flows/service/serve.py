"""Serves all flows as deployments of a Prefect server, and runs what is requested there or scheduled.

    PREFECT_API_URL=http://127.0.0.1:4200/api microseg serve

Scheduled batches segment the folder ``to-segment/`` of microseg's home. A lab whose files are copied into
``incoming/<lab>/`` is onboarded when they are complete. A version that is promoted in MLflow is validated. Long flows
run one at a time, because each can use the whole machine; short ones do not wait for them.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from typing import Any

import typer
from prefect.client.orchestration import get_client
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.exceptions import TerminationSignal
from prefect.flows import Flow
from prefect.runner import Runner
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_LEVEL, temporary_settings
from prefect.types.entrypoint import EntrypointType

from flows.adapt import adapt
from flows.cli.main import COMMANDS, SERVICE_COMMANDS
from flows.cli.options import cli_command
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.onboard import onboard
from flows.promote import promote
from flows.reconcile import reconcile
from flows.rollback import rollback
from flows.segment import segment
from flows.segment_scheduled import segment_scheduled
from flows.service.drop_folder import watch
from flows.service.events import lab_arrived_trigger, promotion_trigger
from flows.service.webhook_receiver import webhook_receiver
from flows.train import train
from flows.validate_promotion import validate_promotion
from flows.workspace import open_workspace
from microseg.config.params import ScheduleSettings
from microseg.config.settings import Settings, load_settings
from microseg.errors import MicrosegError, SettingsError
from microseg.registry.connection import is_server

__all__ = ["command", "deployments"]

_STOP_SECONDS = 30.0

_log = logging.getLogger(__name__)

_ON_REQUEST: tuple[Flow[Any, Any], ...] = (ingest, train, adapt, evaluate, promote, rollback, segment)
_SHORT = (promote.name, rollback.name, validate_promotion.name, reconcile.name)
"""Flows that take seconds: they do not wait for those that take hours."""


def deployments(settings: Settings) -> list[RunnerDeployment]:
    """A deployment of each flow, named after it: ``prefect deployment run ingest/ingest``.

    Args:
        settings: When and on which folder scheduled flows run.

    Raises:
        SettingsError: The schedule is invalid.
    """
    schedule = settings.params.schedule
    folder = settings.home.root / schedule.folder
    return [
        *(_deployment(flow) for flow in _ON_REQUEST),
        _deployment(onboard, triggers=[lab_arrived_trigger()]),
        _deployment(validate_promotion, triggers=[promotion_trigger()]),
        _deployment(reconcile, schedule=IntervalSchedule(interval=timedelta(minutes=schedule.reconcile_minutes))),
        _deployment(
            segment_scheduled,
            f"Segment new and changed images in {folder} with the production model.",
            parameters={"folder": str(folder)},
            schedule=_schedule(schedule),
        ),
    ]


def _deployment(
    flow: Flow[Any, Any],
    description: str | None = None,
    parameters: dict[str, Any] | None = None,
    schedule: CronSchedule | IntervalSchedule | None = None,
    triggers: list[DeploymentEventTrigger] | None = None,
) -> RunnerDeployment:
    deployment = flow.to_deployment(
        flow.name,
        description=description or (COMMANDS | SERVICE_COMMANDS)[flow.name][1],
        tags=["microseg"],
        entrypoint_type=EntrypointType.MODULE_PATH,  # importable from any folder
        parameters=parameters,
        schedules=[schedule] if schedule else None,
        triggers=list(triggers or ()),
        # a second run at the same time would only find what the first one handles
        concurrency_limit=1 if flow in (validate_promotion, reconcile) else None,
    )
    assert isinstance(deployment, RunnerDeployment)  # not a coroutine: there is no event loop here
    return deployment


def _schedule(settings: ScheduleSettings) -> CronSchedule:
    try:
        return CronSchedule(cron=settings.segment_cron, timezone=settings.timezone)
    except ValueError as error:
        raise SettingsError(
            "schedule: expected a cron expression such as '0 3 * * *' and a time zone such as Europe/Berlin, got "
            f"{settings.segment_cron!r} and {settings.timezone!r}. Correct them in params.yaml."
        ) from error


def _check_server() -> None:
    url = PREFECT_API_URL.value()
    if not url:
        raise SettingsError(
            "PREFECT_API_URL: expected the address of a Prefect server, found none. Run `microseg service "
            "local-servers`, which starts one and serves the flows, or set the address of yours, for example "
            "PREFECT_API_URL=http://127.0.0.1:4200/api."
        )
    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
    if error is not None:
        raise MicrosegError(
            f"Expected a Prefect server at {url}, got {type(error).__name__}: {error}. Start it, or correct "
            "PREFECT_API_URL."
        )


@contextmanager
def _event_sources(settings: Settings) -> Iterator[None]:
    """Receive MLflow's webhooks and watch the drop folder, in threads, while the block runs."""
    stop = threading.Event()
    watcher = threading.Thread(target=watch, args=(settings, stop), name="drop folder", daemon=True)
    with ExitStack() as stack:
        if is_server(settings.environment.tracking_uri):
            url = stack.enter_context(webhook_receiver(settings))
            open_workspace(settings).registry.webhooks.subscribe(url, settings.environment.webhook_secret)
            _log.info("MLflow reports alias changes to %s", url)
        else:
            _log.info("No MLflow server: the deployment reconcile finds alias changes in the database")
        watcher.start()
        try:
            yield
        finally:
            stop.set()


def _run(settings: Settings) -> None:
    """Register the deployments and run them: short flows in this thread, long ones, one at a time, in another."""
    short, long = (
        Runner(name="microseg short", pause_on_shutdown=True, limit=2),
        Runner(name="microseg", pause_on_shutdown=True, limit=1),
    )
    for deployment in deployments(settings):
        (short if deployment.flow_name in _SHORT else long).add_deployment(deployment)
    thread = threading.Thread(target=lambda: asyncio.run(long.start()), name="long flows", daemon=True)
    thread.start()
    try:
        asyncio.run(short.start())
    finally:
        if thread.is_alive() and long.started:
            long.execute_in_background(long.astop)
        thread.join(_STOP_SECONDS)


@cli_command(home="create")
def command() -> None:
    """Serve all flows as Prefect deployments and run what is scheduled.

    The server is that of PREFECT_API_URL. Labs that arrive in the drop folder are onboarded, versions that are promoted
    in MLflow are validated, and batches are segmented at the times of `schedule` in params.yaml. Runs until Ctrl-C;
    schedules pause meanwhile.

    Example: PREFECT_API_URL=http://127.0.0.1:4200/api microseg serve
    """
    settings = load_settings()
    _check_server()
    # flow runs are separate processes, started in other folders: they get the same home and parameters
    os.environ["MICROSEG_HOME"] = str(settings.home.root)
    if settings.params_file is not None:
        os.environ["MICROSEG_PARAMS"] = str(settings.params_file.absolute())
    logging.getLogger("flows").setLevel(logging.INFO)
    with (
        temporary_settings({PREFECT_LOGGING_LEVEL: "INFO"}),  # log lines of a run appear on its page
        _event_sources(settings),
        suppress(TerminationSignal),
    ):
        _run(settings)


if __name__ == "__main__":
    typer.run(command)
