"""A process that was killed, or found the disk full, at any write: doing the same again leads to the same state."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE

import pytest

from tests.faults.clock import Clock

ROOT = Path(__file__).parents[2]

_LONG = [
    pytest.param(name, 3, marks=pytest.mark.long) for name in ("segment", "export", "evaluate", "promote", "rollback")
]


@pytest.mark.parametrize(("scenario", "most"), [("ingest", 1), *_LONG])
def test_the_state_after_a_fault_is_that_without_it(scenario, most):
    command = [sys.executable, "-m", "tests.faults", "--scenarios", scenario, "--most", str(most)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_the_state_after_a_fault_at_any_write_is_that_without_it():
    done = subprocess.run([sys.executable, "-m", "tests.faults"], cwd=ROOT, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a C compiler")
def test_a_clock_that_is_set_moves_the_time_of_running_processes_only(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    code = "import time; print(time.time(), flush=True); input(); print(time.time(), time.monotonic())"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, text=True, stdin=PIPE, stdout=PIPE, env=os.environ | clock.variables) as process:
        assert process.stdout is not None
        before = float(process.stdout.readline())
        clock.set(-3 * 3600)
        after, monotonic = map(float, process.communicate("\n")[0].split())
    assert abs(after - before + 3 * 3600) < 60
    assert abs(monotonic - time.monotonic()) < 60
    assert abs(time.time() - before) < 60
