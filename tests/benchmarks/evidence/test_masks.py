"""Criteria on masks that are wrong in known ways."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.evidence.masks import main, summarize, wrong_masks
from microseg.annotations.index_masks import read_mask
from microseg.evaluation.overlap import dice
from microseg.slides.images import read_image


def test_wrong_masks_are_of_the_foreground_classes(incoming_labs: tuple[Path, Path]) -> None:
    lab = incoming_labs[1] / "test"
    file = sorted((lab / "masks").iterdir())[0]
    mask = read_mask(file)
    mask[:3] = 255
    made = wrong_masks(read_image(lab / "images" / file.name), mask)
    assert np.array_equal(made["reference"], mask)
    overlap = {name: float(np.nanmean(dice(each, mask, 2)[1:])) for name, each in made.items()}
    assert overlap["reference"] == 1
    assert 1 > overlap["dilated by 2"] > overlap["dilated by 4"] > overlap["dilated by 8"]
    assert all((each[:3] == 255).all() and set(np.unique(each)) <= {0, 1, 255} for each in made.values())
    darker = read_image(lab / "images" / file.name).mean(2)
    for factor in ("0.5", "1"):
        chosen = made[f"darkest, {factor} times the area"] == 1
        assert darker[chosen].mean() < darker[made[f"brightest, {factor} times the area"] == 1].mean()


def test_preferences_by_hand() -> None:
    """The criterion is right on all pairs of a, on none of b; the pair that differs by 0.04 does not count."""
    rows = [
        {"task": task, "dice": overlap, "reverse_validation": sign * overlap}
        | dict.fromkeys(("stain_explained_variance", "forward_validation", "share_shift", "object_size_shift"), 0.5)
        for task, sign in (("a", 1), ("b", -1))
        for overlap in (0.9, 0.86, 0.3)
    ]
    table = summarize(rows).set_index("criterion")
    line = table.loc["reverse validation on the source labs (AUC)"]
    assert (line["a"], line["b"]) == ("100%", "0%")
    assert line["right"].startswith("4/8: 50%")
    assert line["worse by more than 0.1, preferred"].startswith("2/4: 50%")


@pytest.mark.long
def test_command_stores_its_rows(tmp_path: Path) -> None:
    command = ["--task", "synthetic", "--images", "2", "--out", str(tmp_path)]
    main(command)
    rows = json.loads((tmp_path / "results.json").read_text())
    assert {"reference", "eroded", "shifted"} <= {row["mask"] for row in rows}
    assert "| reverse validation" in (tmp_path / "tables.md").read_text()
    main(command)
    assert json.loads((tmp_path / "results.json").read_text()) == rows
