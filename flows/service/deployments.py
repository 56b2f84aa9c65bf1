"""A Prefect deployment of each flow, named after it."""

from datetime import timedelta
from typing import Any

from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.flows import Flow
from prefect.types.entrypoint import EntrypointType

from flows.adapt import adapt
from flows.cli.main import COMMANDS, SERVICE_COMMANDS
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.onboard import onboard
from flows.promote import promote
from flows.reconcile import reconcile
from flows.rollback import rollback
from flows.segment import segment
from flows.segment_scheduled import segment_scheduled
from flows.service.events import TAG, lab_arrived_trigger, promotion_trigger
from flows.train import train
from flows.validate_promotion import validate_promotion
from microseg.config.params import ScheduleSettings
from microseg.config.settings import Settings
from microseg.errors import SettingsError

__all__ = ["deployments", "is_short"]

_ON_REQUEST: tuple[Flow[Any, Any], ...] = (ingest, train, adapt, evaluate, promote, rollback, segment)
_SHORT = (promote.name, rollback.name, validate_promotion.name, reconcile.name)


def is_short(deployment: RunnerDeployment) -> bool:
    """Whether its runs take seconds: they do not wait for those that take hours."""
    return deployment.flow_name in _SHORT


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
        tags=[TAG],
        entrypoint_type=EntrypointType.MODULE_PATH,  # importable from any folder
        parameters=parameters,
        schedules=[schedule] if schedule else None,
        triggers=list(triggers or ()),
        paused=False,  # also if an earlier version paused it when it stopped
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
