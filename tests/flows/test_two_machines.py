"""Two homes with one remote, one MLflow and one Prefect server, as on two machines."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from microseg.registry.registry import Registry
from microseg.synthetic.labs import LAB_B, generate_lab
from tests.flows.live import Servers, environment_of_service, started, until

pytestmark = [pytest.mark.server, pytest.mark.long]

TIMEOUT = 900  # seconds of one command, on a busy machine


@pytest.fixture(scope="module")
def servers(params: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with started(tmp_path_factory.mktemp("servers"), params, "--no-deployments") as it:
        until(lambda: "Ctrl-C" in it.output.read_text() or it.process.poll() is not None, "the servers' addresses")
        assert it.process.poll() is None, it.output.read_text()
        yield it


class Machine:
    """A home and its environment; the folder of everything shared is beside it."""

    def __init__(self, name: str, servers: Servers, shared: Path) -> None:
        self.home = shared.parent / name
        environment = environment_of_service()
        self.environment = environment | {
            "MICROSEG_HOME": str(self.home),
            "MICROSEG_PARAMS": str(servers.home.parent / "params.yaml"),
            "MICROSEG_DVC_REMOTE": str(shared / "remote"),
            "MICROSEG_ONBOARDING__RECORDS": str(shared / "records"),
            "MICROSEG_ONBOARDING__DROP_FOLDER": str(shared / "incoming"),
            "PREFECT_API_URL": f"{servers.prefect}/api",
            "PREFECT_HOME": str(self.home / "prefect"),
            "MLFLOW_TRACKING_URI": servers.mlflow,
        }

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "flows.cli.main", *map(str, arguments)]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, *arguments: object) -> str:
        return finished(self.start(*arguments))


def finished(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, output
    return output


def test_two_machines_share_one_installation(
    servers: Servers, incoming_labs: tuple[Path, Path], tmp_path: Path
) -> None:
    lab_a, lab_b = incoming_labs
    shared = tmp_path / "shared"
    shared.mkdir()
    one, two = (Machine(name, servers, shared) for name in ("one", "two"))
    registry = Registry(servers.mlflow)

    one.run("ingest", lab_a)
    one.run("train", "lab_a")
    two.run("ingest", lab_b)
    two.run("adapt", "lab_b")  # with the dataset of lab_a from the remote
    candidate = registry.versions.all()[0]
    assert (candidate.version, set(candidate.datasets)) == (2, {"lab_a", "lab_b"})

    more = generate_lab(tmp_path / "more" / "lab_b", LAB_B, images=9, size=64, labelled=False, seed=1)  # 3 more
    one.run("ingest", more)  # on top of the version of the other machine
    two.run("adapt", "lab_b")
    labs = {lab["lab"]: lab for lab in json.loads(two.run("status", "--json"))["labs"]}
    assert labs["lab_b"]["versions"] == 2
    newest = registry.versions.all()[0]
    assert newest.version == 3
    assert newest.datasets["lab_b"] == labs["lab_b"]["digest"] != candidate.datasets["lab_b"]

    lab_c = generate_lab(
        shared / "incoming" / "lab_c", replace(LAB_B, name="lab_c"), images=4, size=64, labelled=False, seed=3
    )
    both = [machine.start("onboard", lab_c, "--here") for machine in (one, two)]
    outputs = [finished(process) for process in both]
    assert len([version for version in registry.versions.all() if version.tags.get("target") == "lab_c"]) == 1, outputs

    shutil.copytree(lab_b / "images", shared / "batch")
    for machine in (one, two):
        assert "6" in machine.run("segment", shared / "batch", "--out", shared / "results")
    summary = json.loads((shared / "results" / "batch.json").read_text())
    assert (summary["done"], summary["skipped"]) == (0, 6)  # the second machine finds the results of the first
