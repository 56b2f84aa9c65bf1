"""The commands of the tutorials run, in their order; `tests/flows/test_browser.py` does what the one on MLflow says."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from microseg.annotations.index_masks import read_mask
from microseg.synthetic.labs import LAB_A, generate_lab
from tests.docs.pages import ROOT, blocks


def of(tutorial: str, language: str = "sh") -> list[str]:
    """Blocks of a tutorial."""
    return [block.text for block in blocks(language) if block.page == f"docs/tutorials/{tutorial}.md"]


def commands(tutorial: str) -> list[str]:
    return [line for text in of(tutorial) for line in text.splitlines() if line.strip()]


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
@pytest.mark.timeout(3600)
def test_first_adaptation(tmp_path: Path) -> None:
    """In a copy of the checkout, at a path with a space, with a tiny network."""
    checkout = tmp_path / "a check out"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, checkout / name)
    run(commands("first-adaptation"), checkout, tmp_path)
    assert (checkout / "var" / "demo" / "report.html").is_file()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_own_labels_are_corrected_and_sent_back(tmp_path: Path) -> None:
    """The commands of "Your own labels" and "Correct in QuPath", with the files that the first one shows."""
    work = tmp_path / "work"
    lab = work / "path" / "to" / "lab_c"
    made = generate_lab(tmp_path / "lab_a", LAB_A, images=8, size=64, mpp=0.5, labelled=True, test_images=0, seed=0)
    for folder in ("images", "masks"):
        (lab / folder).mkdir(parents=True)
        for number, file in enumerate(sorted((made / folder).iterdir())):
            case, region = number // 2 + 1, number % 2 + 1
            shutil.copy(file, lab / folder / f"case-{case:02}-region-{region}.png")
    (lab / "lab.yaml").write_text(of("own-labels", "yaml")[0])
    head, *lines = of("own-labels", "text")[0].splitlines()
    rows = [f"{file.name},{file.name[:7]},0.5" for file in sorted((lab / "images").iterdir())]
    assert set(lines) <= set(rows)
    (lab / "images.csv").write_text("\n".join([head, *rows, ""]))
    segment, *send_back = commands("correct")
    run([*commands("own-labels"), segment], work, tmp_path)

    outlines = json.loads((work / "path" / "to" / "results" / "case-01-region-1.geojson").read_text())
    squares = {"Region": (4, 60), "gland": (8, 24)}  # all that microseg had found in the region is wrong
    outlines["features"] = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[a, a], [b, a], [b, b], [a, b], [a, a]]]},
            "properties": {"objectType": "annotation", "classification": {"name": name}},
        }
        for name, (a, b) in squares.items()
    ]
    (lab / "annotations").mkdir()
    (lab / "annotations" / "case-01-region-1.geojson").write_text(json.dumps(outlines))
    run(send_back, work, tmp_path)
    mask = read_mask(work / "var" / "data" / "labs" / "lab_c" / "masks" / "case-01-region-1.png")
    original = read_mask(min((made / "masks").iterdir()))  # the command removes the lab's own
    assert (mask[8:24, 8:24] == 1).all()
    assert (mask[30:60, 30:60] == 0).all()
    assert (mask[:4] == original[:4]).all()  # outside of the region as it was


def run(lines: list[str], folder: Path, tmp_path: Path) -> None:
    """Run commands in a folder."""
    if not (folder / ".venv").exists():
        _fake_installation(folder)
    params = tmp_path / "tiny.yaml"
    params.write_text(yaml.safe_dump(TINY))
    foreign = ("PREFECT_", "MLFLOW_", "MICROSEG_", "MAKE", "ARGS")  # `make test` passes its own options on
    environment = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    environment |= {
        "MICROSEG_PARAMS": str(params),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",  # 20 are too few on a busy machine
        "PYTHONPATH": os.pathsep.join(filter(None, (str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")))),
    }
    for line in lines:
        command = f". .venv/bin/activate && {line}" if not line.startswith("make") else line
        done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


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
