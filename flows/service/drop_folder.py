"""Watch the drop folder and emit an event for each incoming dataset that is complete.

    python -m flows.service.drop_folder

A lab's files are copied into ``incoming/<lab>/``, slowly and in any order. An incoming dataset is announced to Prefect
once, when it has ``lab.yaml`` and an image or a slide and nothing has changed for a quiet period. `microseg serve` runs
this.
"""

import logging
import threading
import time

import httpx
import typer

from flows.cli.console import console
from flows.cli.options import cli_command
from flows.service.events import emit_lab_arrived
from flows.workspace import open_workspace
from microseg.config.settings import Settings, load_settings
from microseg.datasets.onboarding import DropFolder
from microseg.errors import LabError, MicrosegError

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
    drop_folder = DropFolder(settings.drop_folder, onboarding.quiet_period)
    drop_folder.path.mkdir(parents=True, exist_ok=True)
    reported: set[tuple[str, str]] = set()
    while not stop.wait(min(_LONGEST_INTERVAL, max(0.2, onboarding.quiet_period / 4))):
        try:
            announce_complete(drop_folder, settings, reported)
        except (OSError, httpx.HTTPError, MicrosegError):  # a share or a server that is not available for some time
            _log.exception("%s could not be polled; trying again", drop_folder.path)


def announce_complete(drop_folder: DropFolder, settings: Settings, reported: set[tuple[str, str]]) -> None:
    """Poll the drop folder once, and announce each complete incoming dataset that was not announced before.

    Args:
        drop_folder: The drop folder.
        settings: Settings of this process.
        reported: Incomplete datasets that were logged already; added to.
    """
    store = open_workspace(settings).onboarding
    for incoming in drop_folder.poll(time.monotonic()):
        if incoming.missing:
            key = (str(incoming.folder), incoming.fingerprint)
            if key not in reported:
                _log.warning("%s is incomplete and was not ingested: %s", incoming.folder, incoming.missing)
                reported.add(key)
            continue
        try:
            before = store.read(incoming.lab)
        except LabError as error:
            _log.warning("%s", error)
            continue
        if before is None or before.fingerprint != incoming.fingerprint:
            emit_lab_arrived(incoming, store)
            _log.info("%s is complete (%s): its onboarding was requested", incoming.folder, incoming.content)


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
