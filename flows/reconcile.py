"""Apply what no event reported: alias changes of clients without webhook, and interrupted onboardings.

python -m flows.reconcile
"""

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import typer
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL

from flows.cli.console import console
from flows.cli.options import SetOption, cli_command
from flows.service.approval import awaits_approval
from flows.service.events import LAB_ARRIVED, emit
from flows.service.readaptation import report_outdated_candidates
from flows.validate_promotion import apply_pending_changes, as_state
from flows.workspace import open_workspace
from microseg.config.settings import Settings, load_settings
from microseg.datasets.incoming import read_incoming_folder
from microseg.datasets.onboarding import Onboarding, OnboardingStore, after_lost_run, is_due, requested_again
from microseg.errors import MicrosegError, RegistryError
from microseg.files import is_below

__all__ = ["command", "reconcile"]

_log = logging.getLogger(__name__)

_UNFINISHED = ("SCHEDULED", "PENDING", "RUNNING", "PAUSED")
_MOST_RUNS = 200  # that a request to Prefect returns


@flow(name="reconcile")
def reconcile(changes: tuple[str, ...] = ()) -> State[Any]:
    """Validate pending alias changes, and restart interrupted onboardings.

    Args:
        changes: Parameters that override those of params.yaml, ``section.name=value``.

    Returns:
        Completed, or Failed if an alias change was reverted; the message describes what was done.
    """
    settings = load_settings(changes)
    restarted = [_restart(onboarding) for onboarding in _interrupted(settings)]  # first: it needs no registry
    if settings.environment.microseg_dvc_remote:  # shared: versions of other machines become known here
        try:
            open_workspace(settings).datasets.refresh_all()
        except MicrosegError as error:
            _log.warning("%s", error)
    entries = apply_pending_changes(settings)
    report_outdated_candidates(settings)
    open_workspace(settings).registry.runs.end_abandoned()
    return as_state(entries, " ".join([*map(str, entries), *restarted]) or "Nothing to do.")


def _interrupted(settings: Settings) -> list[Onboarding]:
    """Onboardings that are due and that no run works on; they are marked for a restart."""
    store, found = open_workspace(settings).onboarding, []
    for onboarding in store.read_all():
        try:
            if _is_due(onboarding, settings) and _mark_for_restart(onboarding, store):
                found.append(onboarding)
        except (MicrosegError, OSError, httpx.HTTPError) as error:  # of one lab; the others are not concerned
            _log.warning("The onboarding of %s is looked at again later: %s", onboarding.lab, error)
    return found


def _mark_for_restart(onboarding: Onboarding, store: OnboardingStore) -> bool:
    """Whether it is restarted: no run works on it, and not too many have died."""
    with store.lock(onboarding.lab, wait=False) as free:
        if not free or store.read(onboarding.lab) != onboarding:
            return False
        lost = onboarding.state == "running"
        return store.write(after_lost_run(onboarding) if lost else requested_again(onboarding)).state == "pending"


def _is_due(onboarding: Onboarding, settings: Settings) -> bool:
    if onboarding.state == "incomplete":
        return _is_complete(onboarding, settings)
    if onboarding.state == "awaiting_approval":
        return not awaits_approval(onboarding)
    waits = onboarding.state == "awaiting_production"
    production = waits and open_workspace(settings).production() is not None
    waiting = _has_run(onboarding) if onboarding.state == "pending" else None
    return is_due(onboarding, datetime.now(UTC), production=production, waiting=waiting)


def _has_run(onboarding: Onboarding) -> bool | None:
    """Whether a run for the dataset is waiting or in progress; None where that is not known."""
    if not PREFECT_API_URL.value():
        return None
    of_onboard = FlowFilter.model_validate({"name": {"any_": ["onboard"]}})
    unfinished = FlowRunFilter.model_validate({"state": {"type": {"any_": _UNFINISHED}}})
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_filter=of_onboard, flow_run_filter=unfinished, limit=_MOST_RUNS)
    return len(runs) == _MOST_RUNS or any(run.parameters.get("folder") == onboarding.folder for run in runs)


def _is_complete(onboarding: Onboarding, settings: Settings) -> bool:
    """Whether the files that were missing are there; the drop folder is watched, other folders are looked at here."""
    folder = Path(onboarding.folder)
    if is_below(folder, [settings.drop_folder]) or not folder.is_dir():
        return False
    return not read_incoming_folder(folder, roots=settings.allowed_roots, labs=settings.home.labs).missing


def _restart(onboarding: Onboarding) -> str:
    text = f"The onboarding of {onboarding.lab} was interrupted ({onboarding.state})"
    if PREFECT_API_URL.value():
        try:
            emit(LAB_ARRIVED, f"microseg.lab.{onboarding.lab}", {"lab": onboarding.lab, "folder": onboarding.folder})
        except httpx.HTTPError as error:  # it remains pending, and is found again
            _log.warning("%s; its event could not be emitted: %s", text, error)
        return f"{text}: restarted."
    return f"{text}: restart it with microseg onboard {onboarding.folder}."


@cli_command()
def command(changes: SetOption = None) -> None:
    """Validate promotions made in MLflow that no event reported, and restart interrupted onboardings.

    `microseg serve` does this every few minutes.

    Example: microseg service reconcile
    """
    state = reconcile(tuple(changes or ()), return_state=True)
    if not state.is_completed():
        raise RegistryError(state.message or "The reconciliation failed.")
    console.print(state.message, markup=False)


if __name__ == "__main__":
    typer.run(command)
