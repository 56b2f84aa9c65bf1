"""What events missed: aliases moved by clients that no webhook tells of, landings that were cut short.

python -m flows.reconcile
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import typer
from prefect import flow
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Failed

from flows.cli.console import console
from flows.cli.options import SetOption, cli_command
from flows.service.events import LAB_ARRIVED, emit
from flows.validate_promotion import apply_pending_changes
from flows.workspace import open_workspace
from microseg.config.settings import Settings, load_settings
from microseg.datasets.onboarding import Onboarding
from microseg.errors import RegistryError

__all__ = ["command", "reconcile"]

_ATTEMPTS = 3
_LATE = timedelta(minutes=15)  # an announced landing that nobody began by then was lost


@flow(name="reconcile")
def reconcile(changes: tuple[str, ...] = ()) -> State[Any]:
    """Settle what was promoted without anybody being told, and begin landings again that were cut short.

    Args:
        changes: parameters that replace those of params.yaml, ``section.name=value``.

    Returns:
        Completed, or Failed when a version was refused; the message says what was found.
    """
    settings = load_settings(changes)
    settled = apply_pending_changes(settings)
    begun = [_begin_again(landing) for landing in _cut_short(settings)]
    message = " ".join([*(it.message for it in settled), *begun]) or "Nothing to do."
    return Completed(message=message) if all(it.accepted for it in settled) else Failed(message=message)


def _cut_short(settings: Settings) -> list[Onboarding]:
    """Landings that nobody works on, though they are neither done nor failed."""
    kept, found = open_workspace(settings).onboarding, []
    for landing in kept.all():
        late = datetime.now(UTC) - datetime.fromisoformat(landing.when) > _LATE
        lost = landing.state == "announced" and late
        ended = landing.state == "running" and landing.attempts < _ATTEMPTS
        possible = landing.state == "held" and open_workspace(settings).production() is not None
        if not (lost or ended or possible):
            continue
        with kept.claimed(landing.lab, wait=False) as free:
            if free:
                kept.write(landing, state="announced")
                found.append(landing)
    return found


def _begin_again(landing: Onboarding) -> str:
    if PREFECT_API_URL.value():
        emit(LAB_ARRIVED, f"microseg.lab.{landing.lab}", {"lab": landing.lab, "folder": landing.folder})
        return f"The landing of {landing.lab} was cut short ({landing.state}): announced again."
    return f"The landing of {landing.lab} was cut short ({landing.state}): microseg onboard {landing.folder}."


@cli_command
def command(changes: SetOption = None) -> None:
    """Settle what was promoted in MLflow without word of it, and begin landings again that were cut short.

    `microseg serve` does this every few minutes. Example: microseg service reconcile
    """
    state = reconcile(tuple(changes or ()), return_state=True)
    if not state.is_completed():
        raise RegistryError(state.message or "It failed.")
    console.print(state.message)


if __name__ == "__main__":
    typer.run(command)
