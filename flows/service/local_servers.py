"""Runs a Prefect server and an MLflow server on this machine, and serves all flows there.

    microseg service local-servers

Both servers use the databases in microseg's home that the flows use without a server, so earlier runs and models are
shown. They accept connections from this machine only.
"""

import base64
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.console import console
from flows.cli.options import cli_command, prepare_home
from microseg.config.settings import Settings, load_settings
from microseg.errors import MicrosegError, SettingsError
from microseg.registry.relocation import update_moved_home

__all__ = ["command"]

_HOST = "127.0.0.1"
_START_SECONDS = 300.0
_STOP_SECONDS = 30.0
_LOG_LINES = 15


@dataclass(frozen=True)
class _Child:
    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raise `MicrosegError` if the process has ended."""
        if (code := self.process.poll()) is not None:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
            output = "\n".join(f"  {line}" for line in lines) or "  (nothing)"
            raise MicrosegError(f"{self.name} ended with exit code {code}. Its last output, from {self.log}:\n{output}")

    def stop(self) -> None:
        """Interrupt the process and its children; kill them if they do not end in time."""
        self._signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_STOP_SECONDS)
        self._signal(signal.SIGKILL)
        self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


class _Children:
    """Child processes that are stopped together, with their output in log files.

    Args:
        logs: Folder of the log files.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._children: list[_Child] = []

    def start(self, name: str, arguments: list[str], environment: Mapping[str, str], folder: Path | None) -> None:
        """Start ``python -m`` with arguments, in a separate session, so that Ctrl-C reaches this process only."""
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"{arguments[0].rpartition('.')[-1]}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        self._children.append(_Child(name, process, log))

    def check(self) -> None:
        """Raise `MicrosegError` if a process has ended."""
        for child in self._children:
            child.check()

    def wait(self, ready: Callable[[], bool]) -> None:
        """Wait until a condition holds; raise `MicrosegError` if a process ends, or after a timeout."""
        end = time.monotonic() + _START_SECONDS
        while not ready():
            self.check()
            if time.monotonic() > end:
                raise MicrosegError(
                    f"Expected the servers to respond within {_START_SECONDS:.0f} s, they did not. See {self._logs}."
                )
            time.sleep(0.5)

    def stop(self) -> None:
        """Stop all processes, the last started first."""
        while self._children:
            self._children.pop().stop()


@contextmanager
def _child_processes(logs: Path) -> Iterator[_Children]:
    """Child processes that are stopped when the block ends, also when the terminal is closed."""
    children = _Children(logs)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield children
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)  # while the children are stopped
        children.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_ports(ports: Mapping[str, int]) -> None:
    if len(set(ports.values())) < len(ports):
        raise SettingsError(f"Expected a different port for each server, got {', '.join(map(str, ports.values()))}.")
    for option, port in ports.items():
        with socket.socket() as probe, socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken = probe.connect_ex((_HOST, port)) == 0
            try:
                trial.bind((_HOST, port))
            except OSError:
                taken = True
        if taken:
            raise SettingsError(
                f"Expected port {port} to be free, but another process uses it. Stop that process, or choose another "
                f"port with {option}."
            )


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


def _start_servers(children: _Children, settings: Settings, prefect_port: int, mlflow_port: int) -> None:
    home = settings.home
    home.mlflow.mkdir(exist_ok=True)
    update_moved_home(home.mlflow / "mlflow.db")
    prefect = ["prefect", "server", "start", "--host", _HOST, "--port", str(prefect_port)]
    address = {"PREFECT_SERVER_API_HOST": _HOST, "PREFECT_SERVER_API_PORT": str(prefect_port)}
    children.start("The Prefect server", prefect, address, home.prefect)
    mlflow = ["mlflow", "server", "--host", _HOST, "--port", str(mlflow_port), "--workers", "1"]
    mlflow += ["--backend-store-uri", f"sqlite:///{home.mlflow / 'mlflow.db'}"]
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
    children.start(
        "The MLflow server", mlflow, variables, home.mlflow
    )  # not in a checkout, whose folder mlflow/ is not the package


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

    Ctrl-C stops all of them. Example: microseg service local-servers --mlflow-port 5001
    """
    settings = load_settings()
    _check_ports({"--prefect-port": prefect_port, "--mlflow-port": mlflow_port, "--webhook-port": webhook_port})
    prepare_home(create=True)
    prefect_url, mlflow_url = f"http://{_HOST}:{prefect_port}", f"http://{_HOST}:{mlflow_port}"
    variables = {"PREFECT_API_URL": f"{prefect_url}/api", "MLFLOW_TRACKING_URI": mlflow_url}
    logs = settings.home.root / "logs"
    with suppress(KeyboardInterrupt), _child_processes(logs) as children:
        with console.status("Starting the servers"):
            _start_servers(children, settings, prefect_port, mlflow_port)
            children.wait(lambda: _responds(f"{prefect_url}/api/health") and _responds(f"{mlflow_url}/health"))
        console.print(f"[bold]Prefect[/]  {prefect_url}  runs, schedules, deployments")
        console.print(f"[bold]MLflow[/]   {mlflow_url}  models, their metrics, and the one in production")
        console.print("To use both from another terminal:")
        home = {"MICROSEG_HOME": str(settings.home.root)} if "MICROSEG_HOME" in os.environ else {}
        for name, value in {**home, **variables}.items():
            console.print(f"  export {name}={shlex.quote(value)}", soft_wrap=True, markup=False)
        console.print(f"Logs: {logs}. Ctrl-C stops the servers.", soft_wrap=True)
        if with_deployments:
            receiver = {"MICROSEG_WEBHOOK_URL": f"http://{_HOST}:{webhook_port}"}
            children.start("microseg serve", ["flows.service.serve"], variables | receiver, None)
        while True:
            children.check()
            time.sleep(1)
    console.print("All servers stopped.")


if __name__ == "__main__":
    typer.run(command)
