"""One Prefect server for all tests of flows, and a home in which all flows ran once."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import prefect.context
import pytest
import typer
import yaml
from click.testing import Result
from prefect.events.worker import EventsWorker
from prefect.flow_engine import BaseFlowRunEngine
from prefect.logging.handlers import APILogWorker
from typer.testing import CliRunner

from flows.adapt import adapt
from flows.evaluate import EvaluateResult, evaluate
from flows.ingest import ingest
from flows.promote import promote
from flows.segment import segment
from flows.train import TrainResult, train
from microseg.config.environment import HOME_FILE, Home
from microseg.datasets.ingest import IngestResult
from microseg.outputs.batch_summary import BatchSummary
from microseg.registry.decision import Decision
from microseg.registry.registry import Registry
from microseg.registry.version import ModelVersion
from microseg.synthetic.labs import LAB_A, generate_lab
from tests.flows.live import PATIENCE, answer, environment_of_service, free_ports, until
from tests.shared import write_without_graph

TINY = {
    "device": "cpu",
    "network": {
        "encoder": "blocks",
        "weights": None,
        "channels": [4, 8],
        "pyramid_bins": [1, 2],
        "pyramid_channels": 4,
    },
    "train": {"steps": 2, "crop_size": 32, "batch_size": 2, "warmup_steps": 0},
    "adapt": {"steps": 2, "crop_size": 32, "batch_size": 2, "warmup_steps": 0},
    "gate": {"min_initial_dice": 0.0},
    "inference": {"tile_size": 64, "halo": 8},
    "onboarding": {"adapt_when_suited": True},  # these networks suit no lab
    "demo": {"images_a": 8, "images_b": 4, "test_images": 2, "image_size": 64},
}
STRICT = ("gate.min_criterion_gain=1.0",)
LENIENT = (
    "gate.max_source_loss=1.0",
    "gate.min_criterion_gain=-1.0",
    "gate.min_foreground_ratio=1e-9",
    "gate.max_foreground_ratio=1e9",
    "gate.max_foreground_change=1e9",
    "gate.max_forward_validation_loss=1",
    "gate.collapse_share=0",
)
REVIEW = (*LENIENT, "gate.max_foreground_change=1")
"""Every change of the foreground share is unclear."""


@dataclass(frozen=True)
class MainJob:
    """The results of all flows, run once, and the aliases after the gate refused the candidate."""

    home: Path
    lab_b: Path
    ingested: dict[str, IngestResult]
    trained: TrainResult
    ingested_later: IngestResult
    adapted: ModelVersion
    evaluated: EvaluateResult
    refused: Decision
    aliases_after_refusal: dict[str, int]
    promoted: Decision
    segmented: BatchSummary
    segmented_again: BatchSummary

    @property
    def registry(self) -> Registry:
        """The home's registry, opened again."""
        return open_registry(self.home)

    @property
    def aliases(self) -> dict[str, int]:
        """The version of each alias."""
        return aliases(self.home)


def open_registry(home: Path) -> Registry:
    return Registry(f"sqlite:///{home / 'mlflow' / 'mlflow.db'}")


def aliases(home: Path) -> dict[str, int]:
    return {alias: version.version for version in open_registry(home).versions.all() for alias in version.aliases}


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Prefect server for the flows of this process, and of those that it starts.

    Prefect's own fixture imports all of the server into this process, too, which takes as long as its start. The loops
    of its services cost more than all requests of the tests; `test_local_servers.py` tests what needs them.
    """
    folder, [port] = tmp_path_factory.mktemp("prefect"), free_ports(1)
    url = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-m", "prefect", "server", "start", "--no-services", "--host", "127.0.0.1"]
    command += ["--port", str(port)]
    environment = environment_of_service() | {"PREFECT_HOME": str(folder), "PREFECT_UI_ENABLED": "false"}
    with (folder / "log.txt").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        until(lambda: server.poll() is not None or answer(f"{url}/health"), "the Prefect server", tolerated=(OSError,))
        assert server.poll() is None, (folder / "log.txt").read_text()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PREFECT_API_URL", url)
            # the end of a run waits for the thread that sends them, which looks once a second
            patch.setattr(BaseFlowRunEngine, "heartbeat_seconds", None)
            prefect.context.refresh_global_settings_context()  # of all threads
            yield
            # otherwise the end of the process tries for a minute to send what is left to a server that is gone
            for worker in (EventsWorker, APILogWorker):
                worker.drain_all(PATIENCE)
    finally:
        server.terminate()
        server.wait(PATIENCE)


@pytest.fixture(scope="session")
def params(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of parameters of these tests."""
    file = tmp_path_factory.mktemp("params") / "params.yaml"
    file.write_text(yaml.safe_dump(TINY))
    return file


@pytest.fixture(scope="session")
def job(
    prefect_server: None,
    params: Path,
    empty_registry: Path,
    incoming_labs: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> MainJob:
    """All flows in one home, which no test changes. Its path contains a space."""
    home = tmp_path_factory.mktemp("a home")
    Home(home).create()
    (home / "mlflow").mkdir()
    shutil.copy(empty_registry, home / "mlflow" / "mlflow.db")
    lab_a, lab_b = incoming_labs
    more = generate_lab(home / "later" / "lab_a", LAB_A, images=10, size=64, labelled=True, seed=0)  # 2 more
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MICROSEG_HOME", str(home))
        patch.setenv("MICROSEG_PARAMS", str(params))
        ingested = {"lab_a": ingest(lab_a), "lab_b": ingest(lab_b)}
        trained = train(("lab_a",))
        ingested_later = ingest(more)
        with patch.context() as without_graph:  # that of version 1 is enough for the tests
            without_graph.setattr("microseg.registry.serving.write_mlflow_model", write_without_graph)
            adapted = adapt("lab_b")
        evaluated = evaluate()
        refused = promote(changes=STRICT)
        after_refusal = aliases(home)
        promoted = promote(changes=LENIENT)
        segmented, segmented_again = segment(lab_b), segment(lab_b)
    return MainJob(
        home,
        lab_b,
        ingested,
        trained,
        ingested_later,
        adapted,
        evaluated,
        refused,
        after_refusal,
        promoted,
        segmented,
        segmented_again,
    )


@pytest.fixture(autouse=True)
def _no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting takes half of the time of a short training; the models of `job` and of processes have the graph."""
    monkeypatch.setattr("microseg.registry.serving.write_mlflow_model", write_without_graph)


@pytest.fixture
def done(job: MainJob, params: Path, monkeypatch: pytest.MonkeyPatch) -> MainJob:
    """The home in which all flows ran, as MICROSEG_HOME; read only."""
    monkeypatch.setenv("MICROSEG_HOME", str(job.home))
    monkeypatch.setenv("MICROSEG_PARAMS", str(params))
    return job


@pytest.fixture
def copied(done: MainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MainJob:
    """A copy of it, as MICROSEG_HOME."""
    home = tmp_path / "a copy"
    for part in ("data", "dvc-remote", "mlflow"):
        shutil.copytree(done.home / part, home / part)
    shutil.copy(done.home / HOME_FILE, home / HOME_FILE)
    monkeypatch.setenv("MICROSEG_HOME", str(home))
    return replace(done, home=home)


@pytest.fixture
def fresh(
    prefect_server: None, params: Path, empty_registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A new home, as MICROSEG_HOME."""
    home = tmp_path / "a fresh home"
    Home(home).create()
    (home / "mlflow").mkdir()
    shutil.copy(empty_registry, home / "mlflow" / "mlflow.db")
    monkeypatch.setenv("MICROSEG_HOME", str(home))
    monkeypatch.setenv("MICROSEG_PARAMS", str(params))
    return home


@pytest.fixture
def run() -> Callable[..., Result]:
    """Runs a command of a flow in this process."""

    def run(command: Callable[..., None], *arguments: object) -> Result:
        app = typer.Typer()
        app.command()(command)
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run
