"""Corrections of slides end to end: outlines, corrected regions, ingest, adaptation, Dice before and after."""

import json
from pathlib import Path

import pytest

from benchmarks import corrections


@pytest.mark.long
def test_corrected_regions_of_slides_raise_dice_on_other_slides(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    corrections.main(["--slides", "--steps", "60", "--size", "96", "--images", "10", "--json", str(file)])
    result = json.loads(file.read_text())
    dice = {name: values["lab_b"] for name, values in result["dice"].items()}
    assert sum(result["regions"].values()) == 5
    assert result["regions"]["train"] >= 2
    assert dice["adapted once more, with corrections"] > dice["adapted without labels"] + 0.02
    assert dice["adapted once more, with corrections"] > dice["adapted once more, without corrections"] + 0.02
