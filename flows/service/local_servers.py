"""Runs a Prefect server and an MLflow server on this machine, and serves all flows there.

    microseg service local-servers

Both servers use the databases in microseg's home that the flows use without a server, so earlier runs and models are
shown. They accept connections from this machine only.
"""

import base64
import os
import shlex
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.console import console
from flows.cli.options import cli_command, prepare_home
from flows.service.ports import check_port_free
from flows.service.processes import Children, exclusive, notify_systemd
from microseg.config.environment import sqlite_uri
from microseg.config.settings import Settings, load_settings
from microseg.errors import MicrosegError, SettingsError
from microseg.registry.relocation import update_moved_home

__all__ = ["command"]

_HOST = "127.0.0.1"
_START_SECONDS = 300.0
_STOP_DEPLOYMENTS_SECONDS = 20.0
_STOP_SERVERS_SECONDS = 8.0


def _wait(children: Children, ready: Callable[[], bool], logs: Path) -> None:
    """Wait until a condition holds; raise `MicrosegError` if a process ends, or after a timeout."""
    end = time.monotonic() + _START_SECONDS
    while not ready():
        children.check()
        if time.monotonic() > end:
            raise MicrosegError(
                f"Expected the servers to respond within {_START_SECONDS:.0f} s, they did not. See {logs}."
            )
        time.sleep(0.5)


@contextmanager
def _child_processes(record: Path) -> Iterator[Children]:
    """Child processes that are stopped when the block ends, also when the terminal is closed."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    children = Children(record)
    try:
        yield children
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)  # while the children are stopped
        children.stop(_STOP_SERVERS_SECONDS)
        children.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_ports(ports: Mapping[str, int]) -> None:
    if len(set(ports.values())) < len(ports):
        raise SettingsError(f"Expected a different port for each server, got {', '.join(map(str, ports.values()))}.")
    for option, port in ports.items():
        check_port_free(_HOST, port, option)


def _responds(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _fernet_key() -> str:
    """A key for ``MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY``.

    It must stay the same: MLflow cannot read the secrets of its webhooks with another one, and sends nothing.
    """
    return base64.urlsafe_b64encode(os.urandom(32)).decode()


def _start_servers(children: Children, settings: Settings, prefect_port: int, mlflow_port: int) -> None:
    home = settings.home
    logs = home.root / "logs"
    home.mlflow.mkdir(exist_ok=True)
    update_moved_home(home.mlflow / "mlflow.db")
    prefect = ["prefect", "server", "start", "--host", _HOST, "--port", str(prefect_port)]
    address = {
        "PREFECT_SERVER_API_HOST": _HOST,
        "PREFECT_SERVER_API_PORT": str(prefect_port),
        # by default, a restart of the server forgets who holds a concurrency slot, and the slot is never free again
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }
    children.start("The Prefect server", prefect, address, home.prefect, logs / "prefect.log")
    mlflow = ["mlflow", "server", "--host", _HOST, "--port", str(mlflow_port), "--workers", "1"]
    mlflow += ["--backend-store-uri", sqlite_uri(home.mlflow / "mlflow.db")]
    # artifacts are read by path, not through the server, so that they are found with and without it
    mlflow += ["--no-serve-artifacts", "--default-artifact-root", (home.mlflow.resolve() / "artifacts").as_uri()]
    variables = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # webhooks go to this machine, without TLS; the database keeps their secret encrypted with this key
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": home.secret("mlflow-webhook.key", _fernet_key),
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",  # seconds; by default a new webhook is used after a minute
    }
    # not in a checkout, whose folder mlflow/ is not the package
    children.start("The MLflow server", mlflow, variables, home.mlflow, logs / "mlflow.log")


@cli_command(home="read")
def command(
    prefect_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the Prefect server.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the MLflow server.")] = 5000,
    webhook_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the webhook receiver.")] = 4280,
    with_deployments: Annotated[
        bool, typer.Option("--deployments/--no-deployments", help="Also serve the flows, as `microseg serve` does.")
    ] = True,
) -> None:
    """Run a Prefect server and an MLflow server on this machine, and serve all flows there.

    Ctrl-C stops all of them.

    Example: microseg service local-servers --mlflow-port 5001
    """
    settings = load_settings()
    ports = {"--prefect-port": prefect_port, "--mlflow-port": mlflow_port, "--webhook-port": webhook_port}
    if not settings.home.exists:
        _check_ports(ports)  # before anything is written
    prepare_home(create=True)
    prefect_url, mlflow_url = f"http://{_HOST}:{prefect_port}", f"http://{_HOST}:{mlflow_port}"
    variables = {"PREFECT_API_URL": f"{prefect_url}/api", "MLFLOW_TRACKING_URI": mlflow_url}
    logs = settings.home.root / "logs"
    with (
        suppress(KeyboardInterrupt),
        exclusive(settings.home, "service local-servers") as record,  # ends what a killed one has left
        _child_processes(record) as children,
    ):
        _check_ports(ports)
        with console.status("Starting the servers"):
            _start_servers(children, settings, prefect_port, mlflow_port)
            _wait(children, lambda: _responds(f"{prefect_url}/api/health") and _responds(f"{mlflow_url}/health"), logs)
        console.print(f"[bold]Prefect[/]  {prefect_url}  runs, schedules, deployments")
        console.print(f"[bold]MLflow[/]   {mlflow_url}  models, their metrics, and the one in production")
        console.print("To use both from another terminal:")
        home = {"MICROSEG_HOME": str(settings.home.root)} if "MICROSEG_HOME" in os.environ else {}
        for name, value in {**home, **variables}.items():
            console.print(f"  export {name}={shlex.quote(value)}", soft_wrap=True, markup=False)
        console.print(f"Logs: {logs}. Ctrl-C stops the servers.", soft_wrap=True)
        if with_deployments:
            receiver = {"MICROSEG_WEBHOOK_URL": f"http://{_HOST}:{webhook_port}"}
            serve = children.start(
                "microseg serve", ["flows.service.serve"], variables | receiver, log=logs / "serve.log"
            )
        announced = not with_deployments
        if announced:
            notify_systemd("READY=1")
        try:
            while True:
                children.check()
                if not announced and serve.ready:
                    console.print("microseg serve is ready: the flows are served.")
                    notify_systemd("READY=1")
                    announced = True
                time.sleep(1)
        finally:
            if with_deployments:
                children.stop_one(serve, _STOP_DEPLOYMENTS_SECONDS)  # it needs the servers
    console.print("All servers stopped.")


if __name__ == "__main__":
    typer.run(command)
