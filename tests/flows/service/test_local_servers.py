"""Real servers, as `make serve` starts them, with deployments that run.

A fault of the stack that nothing else shows: with some versions of Prefect's dependencies the server starts and
answers, and schedules create no runs.
"""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from click.testing import Result
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.states import Scheduled

from flows.service.local_servers import command
from microseg.config.environment import Home
from microseg.datasets.ingest import ingest_lab
from microseg.datasets.versions.store import DatasetStore
from microseg.models.files import load_network
from microseg.registry.registry import Registry
from tests.flows.live import DEPLOYMENTS, PATIENCE, Servers, answer, connected, ended, free_ports, started, until

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.fixture(scope="module")
def servers(params: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with started(tmp_path_factory.mktemp("servers"), params) as it:
        until(lambda: "Ctrl-C" in it.output.read_text() or it.process.poll() is not None, "the servers' addresses")
        assert it.process.poll() is None, it.output.read_text()
        yield it


@pytest.fixture
def client(servers: Servers) -> Iterator[SyncPrefectClient]:
    with connected(servers) as client:
        until(lambda: len(client.read_deployments()) == DEPLOYMENTS, "the deployments")
        yield client


@pytest.mark.server
def test_both_servers_respond_and_their_addresses_are_shown(servers: Servers) -> None:
    assert answer(f"{servers.prefect}/api/health") == "true"
    assert answer(f"{servers.mlflow}/health") == "OK"
    output = servers.output.read_text()
    assert f"export PREFECT_API_URL={servers.prefect}/api\n" in output
    assert f"export MLFLOW_TRACKING_URI={servers.mlflow}\n" in output
    assert f"export MICROSEG_HOME='{servers.home}'\n" in output
    assert (servers.home / "mlflow" / "mlflow.db").is_file()
    assert (servers.home / "prefect" / "server" / "prefect.db").is_file()
    assert {path.name for path in servers.home.parent.iterdir()} == {"a home", "output.txt", "params.yaml"}


def scheduled_runs(client: SyncPrefectClient) -> list[FlowRun]:
    """The scheduled runs of the batches, the next one first."""
    batch = client.read_deployment_by_name("segment-scheduled/segment-scheduled")
    scheduled = FlowRunFilter.model_validate(
        {"deployment_id": {"any_": [batch.id]}, "state": {"type": {"any_": ["SCHEDULED"]}}}
    )
    until(lambda: len(client.read_flow_runs(flow_run_filter=scheduled)) >= 3, "three scheduled runs")
    return sorted(client.read_flow_runs(flow_run_filter=scheduled), key=lambda run: run.expected_start_time)


@pytest.mark.server
def test_scheduled_batches_get_runs(client: SyncPrefectClient) -> None:
    runs = scheduled_runs(client)
    times = [run.expected_start_time.astimezone(BERLIN) for run in runs]
    assert {(time.hour, time.minute) for time in times} == {(4, 30)}
    assert [time.date() - times[0].date() for time in times] == [timedelta(days=days) for days in range(len(times))]
    assert datetime.now(UTC) < times[0] <= datetime.now(UTC) + timedelta(days=1, hours=1)
    assert all(run.auto_scheduled for run in runs)


@pytest.mark.server
@pytest.mark.long
def test_scheduled_batches_run(servers: Servers, client: SyncPrefectClient) -> None:
    runs = scheduled_runs(client)
    client.set_flow_run_state(runs[0].id, Scheduled(scheduled_time=datetime.now(UTC)), force=True)  # its time has come
    run = ended(client, runs[0])
    assert run.state.is_completed()
    assert run.state.message == f"Nothing to do: {servers.home / 'to-segment'} holds no images."


@pytest.mark.server
@pytest.mark.long
def test_flows_started_on_the_server_use_the_same_home(
    servers: Servers, client: SyncPrefectClient, incoming_labs: tuple[Path, Path], tmp_path: Path
) -> None:
    store = DatasetStore(servers.home / "data", str(servers.home / "dvc-remote"))
    ingest_lab(incoming_labs[0], servers.home / "data" / "labs", servers.home / "data" / "quarantine")
    store.commit("lab_a")
    deployment = client.read_deployment_by_name("train/train")
    run = ended(client, client.create_flow_run_from_deployment(deployment.id, parameters={"labs": ["lab_a"]}))
    assert run.state.is_completed(), run.state.message
    with_server, without = Registry(servers.mlflow), Registry(f"sqlite:///{servers.home / 'mlflow' / 'mlflow.db'}")
    for number, registry in enumerate((with_server, without)):
        assert registry.versions.find("production").datasets == {"lab_a": store.history("lab_a")[-1].digest}
        network = load_network(registry.versions.download("production", tmp_path / str(number)))
        assert network.config.encoder == "blocks"


@pytest.mark.server
def test_ctrl_c_stops_all(servers: Servers, client: SyncPrefectClient) -> None:
    """The last test of these servers."""
    servers.process.send_signal(signal.SIGINT)
    assert servers.process.wait(PATIENCE) == 0
    assert servers.output.read_text().endswith("All servers stopped.\n")
    for url in (f"{servers.prefect}/api/health", f"{servers.mlflow}/health"):
        with pytest.raises(OSError, match="refused"):
            answer(url)


@pytest.mark.server
@pytest.mark.long
def test_reports_the_last_output_of_a_server_that_cannot_start(
    params: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "a home")
    home.create()
    home.mlflow.mkdir()
    (home.mlflow / "mlflow.db").write_text("no database")
    # the Prefect server takes longer to start than the test: in its place, a process that does not answer
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "prefect.py").write_text("import time\ntime.sleep(1000)\n")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path / "first"), os.environ.get("PYTHONPATH")]))
    )
    with started(tmp_path, params, "--no-deployments") as it:
        assert it.process.wait(PATIENCE) == 1
        output = it.output.read_text()
        assert "The MLflow server ended with exit code" in output
        assert "file is not a database" in output
        with pytest.raises(OSError, match="refused"):
            answer(f"{it.prefect}/api/health")


def test_rejects_a_port_in_use(run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICROSEG_HOME", str(tmp_path))
    [free] = free_ports(1)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = run(command, "--prefect-port", free, "--mlflow-port", port)
    assert result.exit_code == 1
    assert f"Expected port {port} to be free" in result.stderr
    assert "--mlflow-port" in result.stderr
    assert not list(tmp_path.iterdir())


def test_rejects_one_port_for_both(run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICROSEG_HOME", str(tmp_path))
    result = run(command, "--prefect-port", 4200, "--mlflow-port", 4200)
    assert result.exit_code == 1
    assert "Expected a different port for each server" in result.stderr
