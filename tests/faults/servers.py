"""A running service in a folder: Prefect server, MLflow server, ``microseg serve``; parts of it can be away."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import psutil
import yaml
from mlflow import MlflowClient
from prefect.client.schemas.filters import FlowRunFilter

from microseg.datasets.onboarding import OnboardingStore
from microseg.registry.registry import Registry
from microseg.synthetic.labs import LAB_A, generate_lab
from tests.faults.clock import Clock
from tests.faults.postgresql import PostgreSQL
from tests.flows.conftest import TINY
from tests.flows.live import connected, environment_of_service, free_ports, until

__all__ = ["SERVERS", "Service"]

_PARTS = {
    "runner": "flows.service.runner",
    "watcher": "flows.service.drop_folder",
    "receiver": "flows.service.webhook_receiver",
}
SERVERS = ("prefect", "mlflow", "serve")
"""Its processes; the output of each is in a file of the folder, such as ``prefect.txt``."""


class Service:
    """A Prefect server, an MLflow server and ``microseg serve``, each started again when it has ended, as by systemd.

    Args:
        folder: Empty folder.
        database: Database of both servers.
        home: microseg's home; in the folder by default.
        clock: All processes use `Service.clock`.
        patience: Longest time to wait for something, in seconds.
        sections: Replace those of the parameters.
    """

    def __init__(
        self,
        folder: Path,
        *,
        database: Literal["sqlite", "postgresql"] = "sqlite",
        home: Path | None = None,
        clock: bool = False,
        patience: float = 600.0,
        sections: Mapping[str, Any] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.home, self.patience = folder, home or folder / "home", patience
        self.ports = dict(zip((*SERVERS[:2], "webhook"), free_ports(3), strict=True))
        self.prefect, self.mlflow = (f"http://127.0.0.1:{self.ports[it]}" for it in SERVERS[:2])
        values: dict[str, Any] = TINY | {
            "train": TINY["train"] | {"steps": 5},
            "adapt": TINY["adapt"] | {"steps": 5},
            "onboarding": {"quiet_period": 2, "adapt_when_suited": True},
            "schedule": {"segment_cron": "30 4 * * *", "reconcile_minutes": 2},
            "gate": {"min_initial_dice": 0.0, "max_source_loss": 1.0},
        }
        (folder / "params.yaml").write_text(yaml.safe_dump(values | dict(sections or {})))
        self.postgresql = PostgreSQL() if database == "postgresql" else None
        self.clock = Clock(folder) if clock else None
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._away: set[str] = set()
        self.restarts = 0
        for name in SERVERS:
            self._start(name)

    # ---- processes

    def _environment(self) -> dict[str, str]:
        variables = self.clock.variables if self.clock else {}
        return (
            environment_of_service()
            | variables
            | {"OMP_NUM_THREADS": "1", "PREFECT_HOME": str(self.folder / "prefect")}
        )

    def _start(self, name: str) -> None:
        variables: dict[str, str] = {}
        port = str(self.ports.get(name, 0))
        if name == "prefect":
            command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", port]
            variables["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"] = (
                "prefect.server.concurrency.lease_storage.filesystem"
            )
            if self.postgresql:
                variables["PREFECT_API_DATABASE_CONNECTION_URL"] = self.postgresql.url("prefect", "postgresql+asyncpg")
        elif name == "mlflow":
            store = self.postgresql.url("mlflow") if self.postgresql else f"sqlite:///{self.folder / 'mlflow.db'}"
            command = ["mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
            command += ["--backend-store-uri", store, "--artifacts-destination", str(self.folder / "artifacts")]
            variables = {
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": "bWljcm9zZWctdGVzdHMtbWljcm9zZWctdGVzdHMtMDE=",
                "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
                "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
                "MLFLOW_WEBHOOK_CACHE_TTL": "1",
            }
        else:
            command = ["flows.service.serve"]
            variables = {
                "MICROSEG_HOME": str(self.home),
                "MICROSEG_PARAMS": str(self.folder / "params.yaml"),
                "MICROSEG_WEBHOOK_URL": f"http://127.0.0.1:{self.ports['webhook']}",
                "MLFLOW_TRACKING_URI": self.mlflow,
                "PREFECT_API_URL": f"{self.prefect}/api",
                "PREFECT_RUNNER_POLL_FREQUENCY": "2",
            }
        with (self.folder / f"{name}.txt").open("ab") as file:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=self.folder,
                env=self._environment() | variables,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def keep(self) -> None:
        """What systemd does."""
        for name, process in list(self._processes.items()):
            if name not in self._away and process.poll() is not None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # a worker of MLflow keeps the port
                self.restarts += 1
                time.sleep(2)
                self._start(name)

    def process(self, name: str) -> psutil.Process | None:
        """A process of the service, or that of a run; None if there is none just now."""
        if name in self._processes:
            return psutil.Process(self._processes[name].pid) if self._processes[name].poll() is None else None
        for process in psutil.Process(self._processes["serve"].pid).children(recursive=True):
            with suppress(psutil.Error):
                line = " ".join(process.cmdline())
                run = "PREFECT__FLOW_RUN_ID" in process.environ() and "engine" in line
                if run if name == "run" else _PARTS[name] in line:
                    return process
        return None

    def wait_for_output(self, lines: int) -> None:
        """Wait until ``serve`` has written some lines more, but two minutes at most."""
        log, end = self.folder / "serve.txt", time.monotonic() + 120
        size = log.stat().st_size
        while log.read_bytes()[size:].count(b"\n") < lines and time.monotonic() < end:
            self.keep()
            time.sleep(0.2)

    def signal(self, name: str, number: signal.Signals) -> bool:
        """Send a signal to a process as soon as there is one; returns whether there was one within a minute."""
        end = time.monotonic() + 60
        while (found := self.process(name)) is None:
            if time.monotonic() > end:
                return False
            self.keep()
            time.sleep(0.2)
        found.send_signal(number)
        if name in self._processes:
            self._processes[name].wait(120)
        return True

    @contextmanager
    def away(self, name: str) -> Iterator[None]:
        """A server that refuses connections."""
        self._away.add(name)
        self._end(name)
        try:
            yield
        finally:
            self._start(name)
            self._away.remove(name)

    @contextmanager
    def silent(self, name: str) -> Iterator[None]:
        """A server that takes connections, and does not respond."""
        found = self.process(name)
        family = [] if found is None else [found, *found.children(recursive=True)]
        for process in family:
            process.suspend()
        try:
            yield
        finally:
            for process in family:
                with suppress(psutil.Error):
                    process.resume()

    def _end(self, name: str) -> None:
        process = self._processes[name]
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # workers of MLflow

    def close(self) -> None:
        """Stop everything."""
        for name in reversed(SERVERS):
            self._away.add(name)
            self._end(name)
        if self.postgresql:
            self.postgresql.close()

    # ---- work

    @property
    def registry(self) -> Registry:
        """The registry of its MLflow server."""
        return Registry(self.mlflow)

    @property
    def onboardings(self) -> OnboardingStore:
        """The states of the onboardings."""
        return OnboardingStore(self.home / "records" / "onboarding")

    def until(self, found: Callable[[], object], what: str) -> None:
        """Wait for a condition, and keep the service running; requests that fail meanwhile count as no."""
        until(found, what, patience=self.patience, tolerated=(Exception,), meanwhile=self.keep)

    def run(self, flow: str, **parameters: Any) -> UUID:
        """Request a run of a deployment; again until the server responds."""
        found: list[UUID] = []

        def request() -> bool:
            with connected(self) as client:
                deployment = client.read_deployment_by_name(f"{flow}/{flow}")
                found.append(client.create_flow_run_from_deployment(deployment.id, parameters=parameters).id)
            return True

        self.until(request, f"the deployment {flow}")
        return found[0]

    def train_first_version(self, folder: Path) -> None:
        """Make a labelled lab, ingest it, and train on it.

        Args:
            folder: Folder for the lab.
        """
        lab = generate_lab(folder, LAB_A, images=8, size=64, labelled=True, test_images=2, seed=0)
        for flow, parameters in (("ingest", {"folder": str(lab)}), ("train", {"labs": [lab.name]})):
            run = self.run(flow, **parameters)
            self.until(lambda run=run: self.ended(run), flow)  # type: ignore[misc]

    def ended(self, run: UUID) -> bool:
        """Whether a run has completed; one that was killed starts again."""
        with connected(self) as client:
            state = client.read_flow_run(run).state
        assert state is None or not state.is_failed(), f"a run failed: {state.message}"
        return state is not None and state.is_completed()

    def unfinished(self) -> list[str]:
        """Runs that are in progress, or late, in Prefect and in MLflow."""
        types = FlowRunFilter.model_validate(
            {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING", "PAUSED"]}}}
        )
        late = FlowRunFilter.model_validate(
            {"state": {"name": {"any_": ["Late", "AwaitingConcurrencySlot", "AwaitingRetry"]}}}
        )
        with connected(self) as client:
            runs = [*client.read_flow_runs(flow_run_filter=types), *client.read_flow_runs(flow_run_filter=late)]
        names = [f"{run.name}: {run.state_name}" for run in runs if not run.name.startswith("reconcile")]
        mlflow = MlflowClient(tracking_uri=self.mlflow)
        experiments = [it.experiment_id for it in mlflow.search_experiments()]
        running = mlflow.search_runs(experiments, "attributes.status = 'RUNNING'")
        return names + [f"run {run.info.run_name} of MLflow" for run in running]
