"""A run whose process is killed while the service lives is begun again."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL

from flows.service.lost_runs import live_flow_runs
from microseg.config.environment import Home
from tests.flows.live import until

pytestmark = pytest.mark.long


@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_whose_process_is_killed_is_begun_again(
    prefect_server: None, tmp_path: Path, number: signal.Signals
) -> None:
    Home(tmp_path / "home").create()
    environment = os.environ | {"MICROSEG_HOME": str(tmp_path / "home"), "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    environment |= {"PREFECT_API_URL": str(PREFECT_API_URL.value())}
    command = [sys.executable, "-m", "tests.flows.service.small_service"]
    with (tmp_path / "output.txt").open("w") as output:
        service = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        until(lambda: "is ready" in (tmp_path / "output.txt").read_text(), "a service that is ready")
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name("slow/slow")
            options = {"parameters": {"name": "work", "seconds": 5.0}}
            run = client.create_flow_run_from_deployment(deployment.id, **options)  # type: ignore[arg-type]
            record = tmp_path / "home" / "work.txt"
            until(record.is_file, "the begin of the run")
            live_flow_runs()[run.id].send_signal(number)
            until(lambda: client.read_flow_run(run.id).state.is_completed(), "the end of the run")
            client.delete_deployment(deployment.id)
            client.delete_deployment(client.read_deployment_by_name("quick/quick").id)
        assert record.read_text().split() == ["began", "began", "ended"]
    finally:
        service.terminate()
        service.wait(60)
