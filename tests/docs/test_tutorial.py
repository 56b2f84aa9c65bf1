"""The commands of the first tutorial run, in their order."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import ROOT, blocks

TUTORIAL = "docs/tutorials/first-adaptation.md"
LINES = [line for block in blocks("sh") if block.page == TUTORIAL for line in block.text.splitlines() if line.strip()]

TINY = {
    "network": {"encoder": "blocks", "weights": None, "channels": [4, 8], "pyramid_channels": 8},
    "train": {"steps": 2, "crop_size": 32, "warmup_steps": 0},
    "adapt": {"steps": 2, "crop_size": 32, "warmup_steps": 0},
    "demo": {"images_a": 8, "images_b": 4, "test_images": 2, "image_size": 64},
    # the gate has to accept a poor network, for the commands that follow
    "gate": {
        "max_source_loss": 1.0,
        "min_criterion_gain": -1.0,
        "min_foreground_ratio": 1e-9,
        "max_foreground_ratio": 1e9,
        "max_foreground_change": 1e9,
        "max_forward_validation_loss": 1.0,
        "collapse_share": 0.0,
    },
}


@pytest.mark.long
def test_commands_run_in_order(tmp_path: Path) -> None:
    """In a copy of the checkout, at a path with a space, with a tiny network."""
    checkout = tmp_path / "a check out"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, checkout / name)
    _fake_installation(checkout)
    params = tmp_path / "tiny.yaml"
    params.write_text(yaml.safe_dump(TINY))
    foreign = ("PREFECT_", "MLFLOW_", "MICROSEG_", "MAKE", "ARGS")  # `make test` passes its own options on
    environment = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    environment |= {
        "MICROSEG_PARAMS": str(params),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",  # 20 are too few on a busy machine
        "PYTHONPATH": f"{checkout}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    for line in LINES:
        command = f". .venv/bin/activate && {line}" if not line.startswith("make") else line
        done = subprocess.run(["bash", "-c", command], cwd=checkout, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert (checkout / "var" / "demo" / "report.html").is_file()


def _fake_installation(checkout: Path) -> None:
    """Create ``.venv``, as the Makefile and the README use it, with programs of the environment that runs the tests."""
    folder = checkout / ".venv" / "bin"
    folder.mkdir(parents=True)
    scripts = {
        "python": f"exec {shlex.quote(sys.executable)}",
        "microseg": "exec python -m flows.cli.main",
    }
    for name, run in scripts.items():
        (folder / name).write_text(f'#!/usr/bin/env bash\n{run} "$@"\n')
        (folder / name).chmod(0o755)
    (folder / "activate").write_text(f'export PATH="{folder}:$PATH"\n')
    (checkout / ".venv" / "installed").touch()
    os.utime(checkout / ".venv" / "installed", (2**31, 2**31))
