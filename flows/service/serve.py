"""All flows as deployments of a Prefect server: started from its page or by its schedule, run by this process.

    PREFECT_API_URL=http://127.0.0.1:4200/api python -m flows.service.serve

A batch runs by itself at the times that ``schedule`` in params.yaml states: put images into ``to-segment/`` in
microseg's home. A lab whose files are copied into ``incoming/<lab>/`` is adapted to when they are all there. A version
that somebody promotes in MLflow is looked at and settled. Long runs follow one another, as each of them can use the
whole machine; quick ones do not wait for them.
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
from flows.service.webhook_receiver import subscribe, webhook_receiver
from flows.train import train
from flows.validate_promotion import validate_promotion
from microseg.config.params import ScheduleSettings
from microseg.config.settings import Settings, load_settings
from microseg.errors import MicrosegError, SettingsError
from microseg.registry.connection import is_server

__all__ = ["DEPLOYMENT", "command", "deployments"]

_STOP_SECONDS = 30.0

_log = logging.getLogger(__name__)

DEPLOYMENT = "microseg"
"""Name of each flow's deployment: ``prefect deployment run ingest/microseg``."""

_ON_REQUEST: dict[Flow[Any, Any], str] = {
    ingest: "Check a lab's folder and make it a version of the lab's dataset.",
    train: "Train a segmenter from labelled labs; the first one goes into production if the gate accepts.",
    adapt: "Adapt the production segmenter to a new lab, without its labels; the result is proposed as candidate.",
    evaluate: "Judge a candidate beside the production model.",
    promote: "Put a candidate into production if the gate accepts it.",
    rollback: "Put the previous version back into production.",
    segment: "Segment a folder's images with the production model.",
}
_QUICK = (promote.name, rollback.name, validate_promotion.name, reconcile.name)
"""Flows that take seconds: they do not wait behind those that take hours."""


def deployments(settings: Settings) -> list[RunnerDeployment]:
    """A deployment of each flow: on request, by schedule, or by an event.

    Args:
        settings: when the batch runs, on which folder, and how often is looked for what events missed.

    Raises:
        SettingsError: when the schedule is none.
    """
    schedule = settings.params.schedule
    folder = settings.home.root / schedule.folder
    return [
        *(_deployment(it, description) for it, description in _ON_REQUEST.items()),
        _deployment(
            onboard,
            "Take over a lab that has landed, adapt the production model to it, judge the result.",
            triggers=[lab_arrived_trigger()],
        ),
        _deployment(
            validate_promotion,
            "Look at a version that was promoted in MLflow, and settle it in production or put it back.",
            triggers=[promotion_trigger()],
        ),
        _deployment(
            reconcile,
            "Settle what was promoted, and begin landings again, of which no event told.",
            schedule=IntervalSchedule(interval=timedelta(minutes=schedule.reconcile_minutes)),
        ),
        _deployment(
            segment_scheduled,
            f"Segment what is new in {folder} with the production model.",
            parameters={"folder": str(folder)},
            schedule=_schedule(schedule),
        ),
    ]


def _deployment(
    it: Flow[Any, Any],
    description: str,
    parameters: dict[str, Any] | None = None,
    schedule: CronSchedule | IntervalSchedule | None = None,
    triggers: list[DeploymentEventTrigger] | None = None,
) -> RunnerDeployment:
    made = it.to_deployment(
        DEPLOYMENT,
        description=description,
        tags=["microseg"],
        entrypoint_type=EntrypointType.MODULE_PATH,  # found from any folder
        parameters=parameters,
        schedules=[schedule] if schedule else None,
        triggers=list(triggers or ()),
        # two at once would look at the same thing; whoever comes second finds it done
        concurrency_limit=1 if it in (validate_promotion, reconcile) else None,
    )
    assert isinstance(made, RunnerDeployment)  # not awaited: there is no event loop here
    return made


def _schedule(settings: ScheduleSettings) -> CronSchedule:
    try:
        return CronSchedule(cron=settings.segment_cron, timezone=settings.timezone)
    except ValueError as error:
        raise SettingsError(
            f"Expected a cron schedule such as '0 3 * * *' with a time zone such as Europe/Berlin, got "
            f"{settings.segment_cron!r} with {settings.timezone!r}: correct schedule in params.yaml."
        ) from error


def _check_server() -> None:
    url = PREFECT_API_URL.value()
    if not url:
        raise SettingsError(
            "Expected a Prefect server's address in PREFECT_API_URL, found none: run "
            "`microseg service local-servers`, which starts "
            "one and serves the flows, or name yours, for example PREFECT_API_URL=http://127.0.0.1:4200/api."
        )
    with get_client(sync_client=True) as client:
        fault = client.api_healthcheck()
    if fault is not None:
        raise MicrosegError(
            f"Expected a Prefect server at {url}, got {type(fault).__name__}: {fault}. Start it, or correct "
            "PREFECT_API_URL."
        )


@contextmanager
def _attending(settings: Settings) -> Iterator[None]:
    """Listen to MLflow and watch the incoming folder meanwhile, in threads."""
    stop = threading.Event()
    watching = threading.Thread(target=watch, args=(settings, stop), name="watch", daemon=True)
    with ExitStack() as stack:
        if is_server(settings.environment.tracking_uri):
            url = stack.enter_context(webhook_receiver(settings))
            subscribe(settings, url)
            _log.info("MLflow tells of promotions at %s", url)
        else:
            _log.info("No MLflow server tells of promotions: they are noticed by the deployment reconcile")
        watching.start()
        try:
            yield
        finally:
            stop.set()


def _run(settings: Settings) -> None:
    """Register the deployments and run what is asked for: quick flows here, long ones, one by one, in a thread."""
    quick, long = (
        Runner(name="microseg quick", pause_on_shutdown=True, limit=2),
        Runner(name="microseg", pause_on_shutdown=True, limit=1),
    )
    for made in deployments(settings):
        (quick if made.flow_name in _QUICK else long).add_deployment(made)
    thread = threading.Thread(target=lambda: asyncio.run(long.start()), name="long flows", daemon=True)
    thread.start()
    try:
        asyncio.run(quick.start())
    finally:
        if thread.is_alive() and long.started:
            long.execute_in_background(long.astop)
        thread.join(_STOP_SECONDS)


@cli_command
def command() -> None:
    """Register all flows as deployments of the Prefect server in PREFECT_API_URL, and run what is asked for there.

    Batches run at the times of `schedule` in params.yaml; labs that land in incoming/ are adapted to; versions promoted
    in MLflow are looked at and settled. Runs until Ctrl-C; schedules pause meanwhile.
    """
    settings = load_settings()
    _check_server()
    # the runs are processes of their own: they shall find the same places from wherever they start
    os.environ["MICROSEG_HOME"] = str(settings.home.root)
    if settings.params_file is not None:
        os.environ["MICROSEG_PARAMS"] = str(settings.params_file.absolute())
    logging.getLogger("flows").setLevel(logging.INFO)
    with (
        temporary_settings({PREFECT_LOGGING_LEVEL: "INFO"}),  # what a run says is shown on its page
        _attending(settings),
        suppress(TerminationSignal),
    ):
        _run(settings)


if __name__ == "__main__":
    typer.run(command)
