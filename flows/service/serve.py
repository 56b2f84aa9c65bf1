"""Serves all flows as deployments of a Prefect server, and runs what is requested there or scheduled.

    PREFECT_API_URL=http://127.0.0.1:4200/api microseg serve

Scheduled batches segment the folder ``to-segment/`` of microseg's home. A lab whose files are copied into
``incoming/<lab>/`` is onboarded when they are complete. A version that is promoted in MLflow is validated. The parts of
the service are processes: the runner, the watcher of the drop folder, the receiver of MLflow's webhooks. A part that
ends is started again; if it fails again and again, the service ends with an error.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from urllib.parse import urlsplit

import typer
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL

from flows.cli.console import console
from flows.cli.options import cli_command
from flows.service.lost_runs import HEARTBEAT_SECONDS
from flows.service.notifications import notify_people
from flows.service.ports import check_port_free
from flows.service.processes import Children, exclusive, notify_systemd, report_ready
from flows.service.supervisor import Part, supervise
from microseg.config.environment import is_server
from microseg.config.settings import Settings, load_settings
from microseg.errors import MicrosegError, SettingsError
from microseg.escaping import mask_secrets

__all__ = ["command"]

_WAIT_SECONDS = 60.0  # for the Prefect server, at the start
_STOP_SECONDS = 18.0  # for the parts

_log = logging.getLogger(__name__)


def _wait_for_server(stop: threading.Event) -> str:
    """Wait until the Prefect server responds, or until stopped.

    Returns:
        Its address.
    """
    url = PREFECT_API_URL.value()
    if not url:
        raise SettingsError(
            "PREFECT_API_URL: expected the address of a Prefect server, found none. Run `microseg service "
            "local-servers`, which starts one and serves the flows, or set the address of yours, for example "
            "PREFECT_API_URL=http://127.0.0.1:4200/api."
        )
    shown, end = mask_secrets(url), time.monotonic() + _WAIT_SECONDS
    while True:
        with get_client(sync_client=True) as client:
            error = client.api_healthcheck()
        if error is None or stop.is_set():
            return shown
        if time.monotonic() > end:
            raise MicrosegError(
                f"Expected a Prefect server at {shown}, got {type(error).__name__}: {error}. Start it, or correct "
                "PREFECT_API_URL."
            )
        _log.warning("Waiting for the Prefect server at %s: %s", shown, error)
        stop.wait(2)


@contextmanager
def _stop_event() -> Iterator[threading.Event]:
    """An event that is set by Ctrl-C, SIGTERM or the end of the terminal."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parts(settings: Settings) -> list[Part]:
    parts = [
        Part("The runner", "flows.service.runner"),
        Part("The watcher of the drop folder", "flows.service.drop_folder", reports_ready=False),
    ]
    if is_server(settings.environment.tracking_uri):
        parts.append(Part("The webhook receiver", "flows.service.webhook_receiver"))
    return parts


def _describe(settings: Settings, server: str) -> str:
    if is_server(settings.environment.tracking_uri):
        promotions = f"MLflow sends promotions to {settings.environment.microseg_webhook_url}."
    else:
        promotions = "No MLflow server: promotions are found by polling."
    return f"microseg serve is ready: deployments at {server}, new labs in {settings.drop_folder}. {promotions}"


@cli_command(home="create")
def command() -> None:
    """Serve all flows as Prefect deployments and run what is scheduled.

    The server is that of PREFECT_API_URL. Labs that arrive in the drop folder are onboarded, versions that are promoted
    in MLflow are validated, and batches are segmented at the times of `schedule` in params.yaml. Runs until Ctrl-C or
    SIGTERM; a run in progress is interrupted, and starts again with the service.

    Example: PREFECT_API_URL=http://127.0.0.1:4200/api microseg serve
    """
    settings = load_settings()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    with _stop_event() as stop, exclusive(settings.home, "serve") as record:
        server = _wait_for_server(stop)
        receiver = urlsplit(settings.environment.microseg_webhook_url)
        if is_server(settings.environment.tracking_uri) and receiver.port:
            check_port_free(settings.environment.microseg_webhook_host, receiver.port, "MICROSEG_WEBHOOK_URL")
        # the parts and the runs start in other folders: they get the same home and parameters
        os.environ["MICROSEG_HOME"] = str(settings.home.root)
        if settings.params_file is not None:
            os.environ["MICROSEG_PARAMS"] = str(settings.params_file.absolute())
        os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", str(HEARTBEAT_SECONDS))  # by default 180

        def on_ready() -> None:
            console.print(_describe(settings, server), markup=False, soft_wrap=True)
            sys.stdout.flush()
            notify_systemd("READY=1")
            report_ready()

        children = Children(record)
        try:
            supervise(_parts(settings), children, stop, on_ready=on_ready)
        except MicrosegError as error:
            notify_people(settings, "microseg serve has stopped", str(error), identity=f"serve {datetime.now(UTC)}")
            raise
        finally:
            notify_systemd("STOPPING=1")
            children.stop(_STOP_SECONDS)
            children.close()


if __name__ == "__main__":
    typer.run(command)
