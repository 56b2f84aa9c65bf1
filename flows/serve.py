"""All flows as deployments of a Prefect server: started from its page or by its schedule, run by this process.

    PREFECT_API_URL=http://127.0.0.1:4200/api python -m flows.serve

A batch runs by itself at the times that ``schedule`` in params.yaml states: put images into ``to-segment/`` in
microseg's home. Runs follow one another, as each of them can use the whole machine.
"""

import os
from typing import Any

import prefect
import typer
from prefect.client.orchestration import get_client
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.flows import Flow
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_LEVEL, temporary_settings
from prefect.types.entrypoint import EntrypointType

from flows.adapt import adapt
from flows.command import microseg_command
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.promote import promote
from flows.rollback import rollback
from flows.scheduled import segment_waiting
from flows.segment import segment
from flows.settings import ScheduleSettings, Settings, load_settings
from flows.train import train
from microseg.errors import MicrosegError, SettingsError

__all__ = ["DEPLOYMENT", "command", "deployments"]

DEPLOYMENT = "microseg"
"""Name of each flow's deployment: ``prefect deployment run ingest/microseg``."""

_FLOWS: dict[Flow[Any, Any], str] = {
    ingest: "Check a lab's folder and make it a version of the lab's dataset.",
    train: "Train a segmenter from labelled labs; the first one goes into production if the gate accepts.",
    adapt: "Adapt the production segmenter to a new lab, without its labels; the result is proposed as candidate.",
    evaluate: "Judge a candidate beside the production model.",
    promote: "Put a candidate into production if the gate accepts it.",
    rollback: "Put the previous version back into production.",
    segment: "Segment a folder's images with the production model.",
}


def deployments(settings: Settings) -> list[RunnerDeployment]:
    """A deployment of each flow, and the batch that runs by itself.

    Args:
        settings: when the batch runs, and on which folder.

    Raises:
        SettingsError: when the schedule is none.
    """
    by_hand = [_deployment(it, description) for it, description in _FLOWS.items()]
    folder = settings.home.root / settings.params.schedule.folder
    batch = _deployment(
        segment_waiting,
        f"Segment what is new in {folder} with the production model.",
        parameters={"folder": str(folder)},
        schedule=_schedule(settings.params.schedule),
    )
    return [*by_hand, batch]


def _deployment(
    it: Flow[Any, Any],
    description: str,
    parameters: dict[str, Any] | None = None,
    schedule: CronSchedule | None = None,
) -> RunnerDeployment:
    made = it.to_deployment(
        DEPLOYMENT,
        description=description,
        tags=["microseg"],
        entrypoint_type=EntrypointType.MODULE_PATH,  # found from any folder
        parameters=parameters,
        schedules=[schedule] if schedule else None,
    )
    assert isinstance(made, RunnerDeployment)  # not awaited: there is no event loop here
    return made


def _schedule(settings: ScheduleSettings) -> CronSchedule:
    try:
        return CronSchedule(cron=settings.segment, timezone=settings.timezone)
    except ValueError as error:
        raise SettingsError(
            f"Expected a cron schedule such as '0 3 * * *' with a time zone such as Europe/Berlin, got "
            f"{settings.segment!r} with {settings.timezone!r}: correct schedule in params.yaml."
        ) from error


def _check_server() -> None:
    url = PREFECT_API_URL.value()
    if not url:
        raise SettingsError(
            "Expected a Prefect server's address in PREFECT_API_URL, found none: run `microseg servers`, which starts "
            "one and serves the flows, or name yours, for example PREFECT_API_URL=http://127.0.0.1:4200/api."
        )
    with get_client(sync_client=True) as client:
        fault = client.api_healthcheck()
    if fault is not None:
        raise MicrosegError(
            f"Expected a Prefect server at {url}, got {type(fault).__name__}: {fault}. Start it, or correct "
            "PREFECT_API_URL."
        )


@microseg_command
def command() -> None:
    """Register all flows as deployments of the Prefect server in PREFECT_API_URL, and run what is asked for there.

    Batches run at the times of `schedule` in params.yaml. Runs until Ctrl-C; schedules pause meanwhile.
    """
    settings = load_settings()
    _check_server()
    # the runs are processes of their own: they shall find the same places from wherever they start
    os.environ["MICROSEG_HOME"] = str(settings.home.root)
    os.environ["MICROSEG_PARAMS"] = str(settings.params_file.absolute())
    with temporary_settings({PREFECT_LOGGING_LEVEL: "INFO"}):  # what a run says is shown on its page
        prefect.serve(*deployments(settings), limit=1)


if __name__ == "__main__":
    typer.run(command)
