"""Apply what no event reported: alias changes of clients without webhook, and interrupted onboardings.

python -m flows.reconcile
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import typer
from prefect import flow
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL

from flows.cli.console import console
from flows.cli.options import SetOption, cli_command
from flows.service.events import LAB_ARRIVED, emit
from flows.service.readaptation import report_outdated_candidates
from flows.validate_promotion import apply_pending_changes, as_state
from flows.workspace import open_workspace
from microseg.config.settings import Settings, load_settings
from microseg.datasets.onboarding import Onboarding
from microseg.errors import RegistryError

__all__ = ["command", "reconcile"]

_MAX_ATTEMPTS = 3
_START_TIMEOUT = timedelta(minutes=15)  # an event that started no run within this time was lost


@flow(name="reconcile")
def reconcile(changes: tuple[str, ...] = ()) -> State[Any]:
    """Validate pending alias changes, and restart interrupted onboardings.

    Args:
        changes: Parameters that override those of params.yaml, ``section.name=value``.

    Returns:
        Completed, or Failed if an alias change was reverted; the message describes what was done.
    """
    settings = load_settings(changes)
    entries = apply_pending_changes(settings)
    report_outdated_candidates(settings)
    open_workspace(settings).registry.runs.end_abandoned()
    restarted = [_restart(onboarding) for onboarding in _interrupted(settings)]
    return as_state(entries, " ".join([*map(str, entries), *restarted]) or "Nothing to do.")


def _interrupted(settings: Settings) -> list[Onboarding]:
    """Onboardings that no run works on, though they are neither completed nor failed; they are marked for a restart."""
    workspace = open_workspace(settings)
    store, found = workspace.onboarding, []
    for onboarding in store.read_all():
        late = datetime.now(UTC) - datetime.fromisoformat(onboarding.updated_at) > _START_TIMEOUT
        lost = onboarding.state == "pending" and late
        stopped = onboarding.state == "running" and onboarding.attempts < _MAX_ATTEMPTS
        possible = onboarding.state == "awaiting_production" and workspace.production() is not None
        if not (lost or stopped or possible):
            continue
        with store.lock(onboarding.lab, wait=False) as free:
            if free:
                store.write(onboarding, state="pending")
                found.append(onboarding)
    return found


def _restart(onboarding: Onboarding) -> str:
    text = f"The onboarding of {onboarding.lab} was interrupted ({onboarding.state})"
    if PREFECT_API_URL.value():
        emit(LAB_ARRIVED, f"microseg.lab.{onboarding.lab}", {"lab": onboarding.lab, "folder": onboarding.folder})
        return f"{text}: restarted."
    return f"{text}: restart it with microseg onboard {onboarding.folder}."


@cli_command()
def command(changes: SetOption = None) -> None:
    """Validate promotions made in MLflow that no event reported, and restart interrupted onboardings.

    `microseg serve` does this every few minutes. Example: microseg service reconcile
    """
    state = reconcile(tuple(changes or ()), return_state=True)
    if not state.is_completed():
        raise RegistryError(state.message or "The reconciliation failed.")
    console.print(state.message, markup=False)


if __name__ == "__main__":
    typer.run(command)
