"""The study, on small labs and small networks."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.adaptation.tasks import Task
from benchmarks.evidence.__main__ import main
from benchmarks.evidence.measurement import EvaluationImages, evidence
from benchmarks.evidence.scores import SCORES
from benchmarks.evidence.study import Study
from microseg.annotations.index_masks import read_mask
from microseg.datasets.lab import read_lab_metadata
from microseg.evaluation.references import held_out_references, mean_scores, score
from microseg.inference.engine import Engine
from microseg.models.files import load_network, save_network
from microseg.slides.images import write_png

Make = Callable[..., Any]


@pytest.fixture
def data(incoming_labs: tuple[Path, Path], tmp_path: Path) -> Path:
    """Two tasks, which are the same labs."""
    for task in ("one", "two"):
        for lab in incoming_labs:
            shutil.copytree(lab, tmp_path / "data" / task / lab.name)
    return tmp_path / "data"


@pytest.fixture
def grid(tiny_network: Make, tmp_path: Path) -> Path:
    for task in ("one", "two"):
        for number, method in enumerate(("source_only", "default")):
            folder = tmp_path / "grid" / "work" / task / "seed-0" / method
            save_network(folder, tiny_network(number, mpp=0.5))
            (folder / "minutes.json").write_text("1.0")
    return tmp_path / "grid"


def test_finished_networks_are_not_measured_again(
    data: Path, grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(images: int) -> list[dict[str, Any]]:
        study = Study(tmp_path / "out", (grid,), images)
        planned = study.plan([Task("one", data / "one" / "lab_a", data / "one" / "lab_b")], None)
        names = ("source_only", "default", "default, collapsed to gland")
        return list(study.run([(task, candidate) for task, candidate in planned if candidate.name in names]))

    rows = run(3)
    assert [row["network"] for row in rows] == ["source_only", "default", "default, collapsed to gland"]
    assert rows == json.loads((tmp_path / "out" / "results.json").read_text())
    for row in rows:
        assert 0 <= row["target_dice"] <= 1
        assert row["label_free"]["images"] == 3
    first, _, collapsed = (row["label_free"] for row in rows)
    unknown = "overturned_share"  # where production, here untrained, is nowhere confident
    assert set(SCORES) - {"source_dice", unknown} <= first.keys()
    assert collapsed["reverse_validation"] == 0.5
    assert first["teacher_agreement"] == 1
    assert collapsed["foreground_share"] == 1
    assert collapsed["share_shift"] > 0.5

    def refuse(*_: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("benchmarks.evidence.study.evidence", refuse)
    assert run(3) == rows
    with pytest.raises(AssertionError, match="measured again"):  # with another number of images
        run(4)
    save_network(grid / "work" / "one" / "seed-0" / "default", load_network(grid / "work/two/seed-0/source_only"))
    save_network(grid / "work" / "one" / "seed-0" / "source_only", load_network(grid / "work/two/seed-0/default"))
    with pytest.raises(AssertionError, match="measured again"):  # with another network of the same name
        run(3)


@pytest.mark.long
def test_command_prints_and_writes_all_tables(data: Path, grid: Path, tmp_path: Path) -> None:
    command = ["--data", str(data), "--task", "one", "two", "--grid", str(grid), "--images", "3", "--out"]
    main([*command, str(tmp_path / "out")])
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(rows) == 2 * (2 + 8 + 2 * 7 + 2 + 3)
    tables = (tmp_path / "out" / "tables.md").read_text()
    assert tables.count("| stain-explained variance") >= 2
    assert "| gate, against source_only |" in tables
    assert (tmp_path / "out" / "figure.png").stat().st_size > 1000


def test_scores_do_not_use_test_masks(data: Path, tiny_network: Make, tmp_path: Path) -> None:
    task = Task("one", data / "one" / "lab_a", data / "one" / "lab_b")
    network = Engine(tiny_network(mpp=0.5))
    before = evidence(network, EvaluationImages.of(task, tmp_path / "first", 3), None)
    for file in (task.target / "test" / "masks").iterdir():
        write_png(file, 1 - read_mask(file))
    for file in (task.target / "test" / "images").iterdir():
        write_png(file, np.zeros((64, 64, 3), np.uint8))
    assert evidence(network, EvaluationImages.of(task, tmp_path / "second", 3), None) == before
    shutil.rmtree(task.target / "test")
    assert evidence(network, EvaluationImages.of(task, tmp_path / "third", 3), None) == before


def test_source_dice_is_measured_on_the_held_out_test_images(data: Path, tiny_network: Make, tmp_path: Path) -> None:
    task = Task("one", data / "one" / "lab_a", data / "one" / "lab_b")
    network = tiny_network(mpp=0.5)
    references = held_out_references(task.source, read_lab_metadata(task.source))
    table = score(Engine(network).probabilities, references, network.config.classes)
    found = evidence(Engine(network), EvaluationImages.of(task, tmp_path, 16), None)
    assert found["source_dice"] == pytest.approx(mean_scores(table)["dice"])


def test_missing_grid_is_reported(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--data", str(data), "--task", "one", "--grid", str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    assert left.value.code == 2
    assert "run python -m benchmarks.adaptation --task one first" in capsys.readouterr().err
