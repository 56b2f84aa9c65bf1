"""Watch the drop folder and emit an event for each incoming dataset that is complete.

    python -m flows.service.drop_folder

A lab's files are copied into ``incoming/<lab>/``, slowly and in any order. An incoming dataset is announced to Prefect
once, when it has ``lab.yaml`` and an image or a slide and nothing has changed for a quiet period. `microseg serve` runs
this.
"""

import logging
import threading
import time
from pathlib import Path

import httpx
import typer

from flows.cli.console import console
from flows.cli.options import cli_command
from flows.service.events import check_event_text, emit_lab_arrived
from flows.workspace import open_workspace
from microseg.config.settings import Settings, load_settings
from microseg.datasets.drop_folder import DropFolder
from microseg.datasets.incoming import IncomingDataset
from microseg.datasets.onboarding import OnboardingStore, new_onboarding
from microseg.errors import MicrosegError

__all__ = ["announce_complete", "command", "watch"]

_LONGEST_INTERVAL = 15.0  # seconds between two polls

_log = logging.getLogger(__name__)


def watch(settings: Settings, stop: threading.Event) -> None:
    """Poll the drop folder until stopped.

    Args:
        settings: Names the folder and the quiet period.
        stop: Set by another thread to stop.
    """
    onboarding = settings.params.onboarding
    drop_folder = DropFolder(
        settings.drop_folder, onboarding.quiet_period, roots=settings.allowed_roots, labs=settings.home.labs
    )
    reported: dict[Path, str] = {}
    fault = ""
    while not stop.wait(min(_LONGEST_INTERVAL, max(0.2, onboarding.quiet_period / 4))):
        try:
            drop_folder.path.mkdir(parents=True, exist_ok=True)
            announce_complete(drop_folder, settings, reported)
            fault = ""
        except Exception as error:  # a share or a server that is not available for some time, or whatever else
            if fault != (fault := f"{type(error).__name__}: {error}"):
                _log.warning("%s could not be polled; it is tried again: %s", drop_folder.path, fault)


def announce_complete(drop_folder: DropFolder, settings: Settings, reported: dict[Path, str]) -> None:
    """Poll the drop folder once, and announce each complete incoming dataset that was not announced before.

    What goes wrong with one dataset is logged, and does not concern the others.

    Args:
        drop_folder: The drop folder.
        settings: Settings of this process.
        reported: What was logged of each folder; changed.
    """
    store = open_workspace(settings).onboarding
    for incoming in drop_folder.poll(time.monotonic()):
        try:
            message = _announce(incoming, store)
        except (httpx.HTTPError, OSError):  # concerns all of them
            raise
        except Exception as error:
            text = str(error) if isinstance(error, MicrosegError) else f"{type(error).__name__}: {error}"
            message = f"was not ingested: {text}"
        if message and reported.get(incoming.folder) != message:
            _log.warning("%s %s", incoming.folder, message)
        reported[incoming.folder] = message


def _announce(incoming: IncomingDataset, store: OnboardingStore) -> str:
    """Announce a dataset if it is complete and new; otherwise return what it waits for, if anything."""
    if not incoming.missing:
        check_event_text(str(incoming.folder))
    before = store.read(incoming.lab)
    own = before is None or before.folder == str(incoming.folder)
    if incoming.missing:
        free = before is None or before.state == "incomplete" or (own and not before.in_progress)
        message = f"is incomplete and was not ingested: {incoming.missing}"
        if free and not (before and before.knows(incoming) and before.message == message):
            onboarding = before.following(incoming) if before else new_onboarding(incoming)
            store.write(onboarding, state="incomplete", message=message)
        return message
    if before is not None and before.knows(incoming) and before.state != "incomplete":
        return ""
    if before is not None and not own and before.in_progress:
        return f"waits: {before.folder}, which states the same lab {before.lab}, is being onboarded"
    emit_lab_arrived(incoming, store)
    _log.info("%s is complete (%s): its onboarding was requested", incoming.folder, incoming.content)
    return ""


@cli_command()
def command() -> None:
    """Watch the drop folder and announce complete incoming datasets to Prefect, until Ctrl-C; `microseg serve` runs it
    too.
    """
    settings = load_settings()
    console.print(f"Watching {settings.drop_folder}. Press Ctrl-C to stop.")
    watch(settings, threading.Event())


if __name__ == "__main__":
    typer.run(command)
