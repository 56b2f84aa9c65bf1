"""The registry on a real MLflow server."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from microseg.errors import RegistryError
from microseg.models.config import WEIGHTS_FILE
from microseg.registry.registry import Registry
from microseg.registry.version import MODEL_NAME

pytestmark = [pytest.mark.server, pytest.mark.long]

START_SECONDS = 240
DIGEST = "0123456789abcdef0123456789abcdef.dir"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "mlflow.db")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/files"]
    command += ["--allowed-hosts", "127.0.0.1:*"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _answers(address):
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"the server did not start:\n{(folder / 'server.log').read_text()[-2000:]}")
                time.sleep(0.2)
            yield address
        finally:
            os.killpg(process.pid, 15)
            process.wait(timeout=30)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_register_promote_download_and_roll_back(server: str, demo, tmp_path: Path) -> None:
    registry = Registry(server, artifact_root=str(tmp_path / "not for a server"))
    versions = []
    for network in demo.networks:
        with registry.runs.start("source lab_a") as run:
            run.log_dataset("lab_a", DIGEST, "/data/lab_a.dvc", "source")
            run.log_metrics({"loss": 0.5}, step=1)
            run.log_dict({"a": 1}, "a.json")
            versions.append(
                registry.versions.register(run, network, example=demo.example, method="source", description="A card.")
            )
    first, second = versions
    registry.production.promote(first)
    registry.production.promote(second)
    assert registry.versions.find("production").version == 2
    assert registry.production.roll_back().version == 1
    folder = registry.versions.download("production", tmp_path / "cache")
    assert (folder / WEIGHTS_FILE).read_bytes() == (demo.networks[0] / WEIGHTS_FILE).read_bytes()
    registry.versions.log_metrics(first, {"dice/lab_a": 0.8}, dataset=("lab_a", DIGEST))

    client = mlflow.MlflowClient(tracking_uri=server, registry_uri=server)
    assert first.model_id is not None
    logged = client.get_logged_model(first.model_id)
    assert [(metric.key, metric.dataset_name) for metric in logged.metrics] == [("dice/lab_a", "lab_a")]
    assert '"microseg-segmenter"' in logged.tags["mlflow.modelVersions"]
    # what makes the user interface link a version to its metrics
    assert client.get_model_version(MODEL_NAME, "1").source == f"models:/{first.model_id}"
    assert not (tmp_path / "not for a server").exists()


def test_host_that_the_server_does_not_allow(server: str) -> None:
    with pytest.raises(RegistryError, match="start the server with --allowed-hosts naming the host in this address"):
        Registry(server.replace("127.0.0.1", "localhost")).versions.all()
