"""The incoming folder → events that a lab has landed.

    python -m flows.service.drop_folder

A lab's files are copied into ``incoming/<lab>/``, slowly and in any order. When nothing has changed there for a while,
and there is a card and an image or a slide, Prefect is told once. `microseg serve` does this itself.
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

__all__ = ["command", "watch"]

_SLOWEST = 15.0  # seconds between two looks

_log = logging.getLogger(__name__)


def watch(settings: Settings, stop: threading.Event) -> None:
    """Look at the incoming folder until told to stop.

    Args:
        settings: which folder, and how long it must be quiet.
        stop: set from another thread.
    """
    landing = settings.params.onboarding
    arrivals = DropFolder(settings.home.root / landing.drop_folder, landing.quiet_period)
    arrivals.incoming.mkdir(parents=True, exist_ok=True)
    told: set[tuple[str, str]] = set()
    while not stop.wait(min(_SLOWEST, max(0.2, landing.quiet_period / 4))):
        try:
            look(arrivals, settings, told)
        except (OSError, httpx.HTTPError, MicrosegError):  # a share or a server that is away for a while
            _log.exception("%s could not be watched; trying again", arrivals.incoming)


def look(arrivals: DropFolder, settings: Settings, told: set[tuple[str, str]]) -> None:
    """Announce what has settled and was not announced before.

    Args:
        arrivals: the watched folder.
        settings: of this run.
        told: incomplete deliveries that were told of already; added to.
    """
    kept = open_workspace(settings).onboarding
    for delivery in arrivals.look(time.monotonic()):
        key = (str(delivery.folder), delivery.fingerprint)
        try:
            before = None if delivery.lacks else kept.read(delivery.lab)
        except LabError as error:
            _log.warning("%s", error)
            continue
        if delivery.lacks:
            if key not in told:
                _log.warning("%s is quiet, but %s: not taken over yet", delivery.folder, delivery.lacks)
                told.add(key)
        elif before is None or before.fingerprint != delivery.fingerprint:
            emit_lab_arrived(delivery, kept)
            _log.info("%s has landed (%s): told Prefect", delivery.folder, delivery.content)


@cli_command(home="create")
def command() -> None:
    """Watch the incoming folder and tell Prefect of labs that have landed, until Ctrl-C; `microseg serve` does this
    itself.
    """
    settings = load_settings()
    console.print(f"Watching {settings.home.root / settings.params.onboarding.drop_folder}. Ctrl-C ends.")
    watch(settings, threading.Event())


if __name__ == "__main__":
    typer.run(command)
