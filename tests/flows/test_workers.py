"""Workers of Prefect run the deployments of prefect.yaml."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.live import DEPLOYMENTS, connected, ended, environment_of_service, runs_of, started, until

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.server
@pytest.mark.long
def test_a_worker_runs_a_deployment(params: Path, tmp_path: Path) -> None:
    with started(tmp_path, params, "--no-deployments") as servers:
        until(lambda: "Ctrl-C" in servers.output.read_text() or servers.process.poll() is not None, "the servers")
        assert servers.process.poll() is None, servers.output.read_text()
        environment = environment_of_service()
        environment |= {"PREFECT_API_URL": f"{servers.prefect}/api", "MLFLOW_TRACKING_URI": servers.mlflow}
        environment |= {"MICROSEG_HOME": str(servers.home), "MICROSEG_PARAMS": str(tmp_path / "params.yaml")}
        environment |= {"PREFECT_HOME": str(tmp_path / "worker"), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}

        def prefect(*arguments: str) -> None:
            command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr

        for pool in ("microseg", "microseg-short"):
            prefect("work-pool", "create", pool, "--type", "process")
        prefect("deploy", "--all")
        with connected(servers) as client:
            assert len(client.read_deployments()) == DEPLOYMENTS
            batch = client.read_deployment_by_name("segment-scheduled/segment-scheduled")
            assert batch.work_pool_name == "microseg"
            until(lambda: len(runs_of(client, "segment-scheduled")) >= 3, "scheduled runs")
            command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "microseg-short"]
            log = (tmp_path / "worker.log").open("w")
            worker = subprocess.Popen(
                command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            try:
                deployment = client.read_deployment_by_name("reconcile/reconcile")
                run = ended(client, client.create_flow_run_from_deployment(deployment.id))
                assert run.state.is_completed(), run.state.message
                assert run.state.message == "Nothing to do."
            finally:
                os.killpg(worker.pid, signal.SIGKILL)  # and the runs that it has begun by now
                worker.wait()
