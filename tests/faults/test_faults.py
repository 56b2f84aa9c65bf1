"""A process that was killed, or found the disk full, at any write: doing the same again leads to the same state."""

import subprocess
import sys
from pathlib import Path

import pytest

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
