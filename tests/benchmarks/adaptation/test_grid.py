import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.adaptation import grid
from benchmarks.adaptation.grid import Grid
from benchmarks.adaptation.methods import SOURCE_ONLY


def test_tasks_with_the_same_source_share_its_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []

    def train(job: dict[str, Any], folder: Path) -> Path:
        if not (folder / "minutes.json").exists():
            folder.mkdir(parents=True)
            folder.with_name(folder.name + ".job.json").write_text(json.dumps(job))
            (folder / "minutes.json").write_text(job["source"])
            trained.append(folder.parent.parent.name)
        return folder

    monkeypatch.setattr(grid, "train_apart", train)
    table = Grid(tmp_path, 1.0)
    for task, manifest, seed in (("a", "one", 0), ("b", "one", 0), ("c", "two", 0), ("d", "one", 1)):
        lab = tmp_path / "labs" / task
        lab.mkdir(parents=True)
        (lab / "manifest.csv").write_text(manifest)
        folder = tmp_path / "work" / task / f"seed-{seed}" / SOURCE_ONLY
        table._source_only({"source": str(lab), "changes": []}, folder)
        assert (folder / "minutes.json").exists()
    assert trained == ["a", "c", "d"]
