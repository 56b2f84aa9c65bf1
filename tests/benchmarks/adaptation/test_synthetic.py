from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.adaptation import synthetic
from benchmarks.adaptation.synthetic import FAMILIES, SYNTHETIC, SYNTHETIC_TASKS
from benchmarks.adaptation.tasks import expand_names, find_task
from microseg.annotations.index_masks import read_mask
from microseg.datasets.lab import check_lab_name, read_lab_metadata
from microseg.synthetic.labs import LAB_A, LAB_B


def test_families_expand_to_their_tasks() -> None:
    names = expand_names(["wbc", "synthetic/balance", "synthetic_smear"])
    assert names[0] == "wbc"
    assert names[1:] == list(FAMILIES["synthetic/balance"])
    assert {name for family in FAMILIES.values() for name in family} == SYNTHETIC_TASKS.keys() - {SYNTHETIC}


def test_tasks_differ_from_their_source() -> None:
    for name, task in SYNTHETIC_TASKS.items():
        assert check_lab_name(task.target.name) != check_lab_name(task.source.name), name
        assert task.target.classes == task.source.classes
    assert (SYNTHETIC_TASKS[SYNTHETIC].source, SYNTHETIC_TASKS[SYNTHETIC].target) == (LAB_A, LAB_B)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_SOURCE_IMAGES", 2), ("_TEST_IMAGES", 6), ("_SOURCE_SIDE", 64)):
        monkeypatch.setattr(synthetic, name, value)
    few = {name: replace(task, images=2, side=64) for name, task in SYNTHETIC_TASKS.items()}
    monkeypatch.setattr(synthetic, "SYNTHETIC_TASKS", few)


def test_tasks_of_one_source_share_its_folder(small: None, tmp_path: Path) -> None:
    sparse, dense = (find_task(f"synthetic_cells_{times}", None, tmp_path) for times in ("0.2", "4"))
    assert sparse.source == dense.source
    assert sparse.target != dense.target
    assert sparse.target.is_relative_to(sparse.source.parent)  # training must not read the test images below it
    masks = sorted((sparse.target / "test" / "masks").iterdir())
    assert all(read_mask(file).any() for file in masks)
    assert len(masks) < 6  # those without any cell are left out
    share = [
        np.mean([read_mask(file) > 0 for file in (task.target / "test" / "masks").iterdir()])
        for task in (sparse, dense)
    ]
    assert share[1] > 4 * share[0]


def test_class_absent_from_the_lab_is_in_its_test_images(small: None, tmp_path: Path) -> None:
    task = find_task("synthetic_types_absent", None, tmp_path)
    assert len(read_lab_metadata(task.target).classes) == 3
    assert any((read_mask(file) == 2).any() for file in (task.target / "test" / "masks").iterdir())
    assert SYNTHETIC_TASKS["synthetic_types_absent"].target.lymphocytes == 0
