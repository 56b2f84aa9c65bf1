"""Held-out test sets cannot be read by a process that trains."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from microseg.datasets.dataset import LabDataset

ROOT = Path(__file__).parents[3]
TINY = ["network.encoder=blocks", "network.channels=[4, 8]", "network.weights=null"]

READ = """
import sys
from pathlib import Path
import microseg
from benchmarks.adaptation.guard import forbid
lab = Path(sys.argv[1])
forbid(lab.parent)
import os
import numpy as np
from PIL import Image
from microseg.annotations.index_masks import read_mask
mask = next(path for path in map(Path, sys.argv[2:]))
ways = {
    "open": lambda: open(mask, "rb"),
    "pillow": lambda: Image.open(mask),
    "microseg": lambda: read_mask(mask),
    "numpy": lambda: np.fromfile(mask),
    "relative": lambda: open(os.path.relpath(mask), "rb"),
    "link": lambda: open(lab / "link.png", "rb"),
    "listdir": lambda: os.listdir(mask.parent),
    "scandir": lambda: list(os.scandir(mask.parent)),
    "glob": lambda: [open(path) for path in lab.rglob("test/masks/*")] or 1 / 0,
}
for name, way in ways.items():
    try:
        way()
        print(name, "READ")
    except Exception as error:
        print(name, "held-out test set" in str(error) or type(error).__name__ == "ZeroDivisionError")
print("images", Image.open(next((lab / "images").iterdir())).size)
"""


def test_test_masks_cannot_be_read(incoming_labs: tuple[Path, Path], tmp_path: Path) -> None:
    import shutil

    lab = tmp_path / "task" / "lab_a"
    shutil.copytree(incoming_labs[0], lab)
    mask = sorted((lab / "test" / "masks").iterdir())[0]
    (lab / "link.png").symlink_to(mask)
    output = subprocess.run(
        [sys.executable, "-c", READ, lab, mask], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    assert [line for line in output if line.endswith("READ")] == []
    assert [line for line in output if line.endswith("False")] == []
    assert "images (64, 64)" in output  # other files can be read


def test_worker_process_is_guarded(labs: tuple[LabDataset, LabDataset], tmp_path: Path) -> None:
    """Training on a dataset in a ``test`` folder of the task fails."""
    import shutil

    hidden = tmp_path / "task" / "lab" / "test" / "labs"
    shutil.copytree(labs[0].folder, hidden / "lab_a")
    job = {
        "kind": "train", "task_folder": str(tmp_path / "task"), "source": str(hidden / "lab_a"), "seed": 0,
        "folder": str(tmp_path / "out"), "changes": TINY, "minutes": None, "start": None, "steps": 1,
    }  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(job))
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.adaptation.worker", tmp_path / "job.json"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode != 0
    assert "held-out test set" in run.stderr


@pytest.mark.long
def test_grid_end_to_end(incoming_labs: tuple[Path, Path], tmp_path: Path) -> None:
    """Small labs, a small network, short training; finished rows are not computed again."""
    import shutil

    for lab in incoming_labs:
        shutil.copytree(lab, tmp_path / "data" / "small" / lab.name)
    shutil.rmtree(tmp_path / "data" / "small" / "lab_b" / "masks", ignore_errors=True)
    command = [
        sys.executable, "-m", "benchmarks.adaptation", "--data", tmp_path / "data", "--task", "small",
        "--minutes", "0.02", "--out", tmp_path / "out", "--set", *TINY, "train.steps=2", "train.crop_size=32",
        "adapt.crop_size=32",
    ]  # fmt: skip
    methods = ["source_only", "default", "adabn", "adaptsegnet", "advent", "fda", "reinhard", "dapnet", "upper_bound"]
    subprocess.run([*command, "--methods", *methods], cwd=ROOT, check=True)
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["method"] for row in rows] == methods
    for row in rows:
        assert {"task", "method", "seed", "source_dice", "target_dice", "minutes"} <= row.keys()
        assert 0 <= row["target_dice"] <= 1
    assert (tmp_path / "out" / "figure.png").stat().st_size > 1000
    subprocess.run([*command, "--methods", "source_only"], cwd=ROOT, check=True)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == rows
