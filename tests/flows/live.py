"""Real servers, started as `make serve` does."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom
from typing import Any, Protocol

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings

DEPLOYMENTS = 11
PATIENCE = 600  # seconds, on a busy machine


@dataclass(frozen=True)
class Servers:
    home: Path
    process: subprocess.Popen[str]
    output: Path
    prefect: str
    mlflow: str


def free_ports(number: int = 2) -> list[int]:
    """Below those that the system gives to outgoing connections, which may take them before a server has started."""
    found: list[int] = []
    with ExitStack() as stack:
        while len(found) < number:
            port = SystemRandom().randrange(10_000, 32_000)
            with suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
                found.append(port)
    return found


def answer(url: str) -> str:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(url, timeout=60) as got:
        return str(got.read().decode())


class _HasPrefect(Protocol):
    @property
    def prefect(self) -> str: ...


@contextmanager
def connected(servers: _HasPrefect) -> Iterator[SyncPrefectClient]:
    """A client of its Prefect server."""
    with temporary_settings({PREFECT_API_URL: f"{servers.prefect}/api"}), get_client(sync_client=True) as client:
        yield client


def environment_of_service() -> dict[str, str]:
    """The environment without addresses of other servers."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_"))}


def ended(client: SyncPrefectClient, run: FlowRun) -> FlowRun:
    until(lambda: client.read_flow_run(run.id).state.is_final(), f"the end of {run.name}")
    return client.read_flow_run(run.id)


def runs_of(client: SyncPrefectClient, flow: str) -> list[FlowRun]:
    """All runs of a flow's deployment, the oldest first."""
    deployment = client.read_deployment_by_name(f"{flow}/{flow}")
    wanted = FlowRunFilter.model_validate({"deployment_id": {"any_": [deployment.id]}})
    return sorted(client.read_flow_runs(flow_run_filter=wanted, limit=200), key=lambda run: run.created)


def until(
    found: Callable[[], object],
    what: str,
    *,
    patience: float = PATIENCE,
    tolerated: tuple[type[Exception], ...] = (),
    meanwhile: Callable[[], object] = lambda: None,
) -> None:
    """Wait for a condition.

    Args:
        found: The condition; an assertion that fails there ends the wait.
        what: What is waited for, for the message.
        patience: Longest time, in seconds.
        tolerated: Errors that count as no, such as those of a server that is away.
        meanwhile: Called before each try.
    """
    end, reason = time.monotonic() + patience, ""
    while True:
        meanwhile()
        try:
            if found():
                return
        except AssertionError:
            raise
        except tolerated as error:
            reason = f" ({type(error).__name__}: {error})"
        assert time.monotonic() < end, f"expected {what} within {patience:.0f} s{reason}"
        time.sleep(1)


@contextmanager
def started(folder: Path, params: Path, *options: str, **sections: Any) -> Iterator[Servers]:
    """Run the command as a process, in a separate home; sections replace those of the parameters."""
    home, output = folder / "a home", folder / "output.txt"
    values = yaml.safe_load(params.read_text()) | {
        "schedule": {"segment_cron": "30 4 * * *", "timezone": "Europe/Berlin"}
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(values | sections))
    ports = free_ports(3)
    environment = environment_of_service()
    environment |= {"MICROSEG_HOME": "a home", "MICROSEG_PARAMS": "params.yaml", "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    command = [sys.executable, "-m", "flows.service.local_servers", *options]
    command += ["--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1]), "--webhook-port", str(ports[2])]
    with output.open("w") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT, text=True
        )
    try:
        yield Servers(home, process, output, f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
