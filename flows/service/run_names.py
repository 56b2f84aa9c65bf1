"""Give scheduled and requested runs a telling name: Prefect names them only when they start."""

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType

from flows.service.lost_runs import our_deployments

__all__ = ["has_generated_name", "name_scheduled_runs", "telling_name"]

_GENERATED = re.compile(r"[a-z]+-[a-z]+")  # such as adorable-lion
_SUBJECTS = ("folder", "source", "lab", "labs", "candidate", "version", "alias")  # parameters that tell runs apart


def name_scheduled_runs(client: SyncPrefectClient) -> None:
    """Name the runs that wait, if they have a name that Prefect generated."""
    names = {it.id: it.name for it in our_deployments(client)}
    if not names:
        return
    selected = {"deployment_id": {"any_": list(names)}, "state": {"type": {"any_": [StateType.SCHEDULED]}}}
    for run in client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(selected), limit=200):
        if run.deployment_id in names and has_generated_name(run):
            client.set_flow_run_name(run.id, telling_name(names[run.deployment_id], run))


def has_generated_name(run: FlowRun) -> bool:
    """Whether Prefect has generated the name of a run."""
    return _GENERATED.fullmatch(run.name) is not None


def telling_name(deployment: str, run: FlowRun) -> str:
    """The name of a run: that of its deployment, and what it works on or when it was scheduled."""
    if run.auto_scheduled and run.expected_start_time:
        return f"{deployment} {run.expected_start_time:%Y-%m-%d %H:%M} UTC"
    subject = _subject(run.parameters)
    return f"{deployment} {subject}" if subject else f"{deployment}, requested {run.created:%Y-%m-%d %H:%M} UTC"


def _subject(parameters: Mapping[str, Any]) -> str:
    value = next((parameters[name] for name in _SUBJECTS if parameters.get(name)), "")
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return PurePath(value).name if isinstance(value, str) else str(value)
