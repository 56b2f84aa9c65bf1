"""The batch that runs by itself."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flows.segment_scheduled import segment_scheduled
from microseg.slides.images import read_image, write_png


def nothing(_folder: Path) -> None:
    pass


def empty(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)


def hidden(folder: Path) -> None:
    folder.mkdir()
    (folder / ".DS_Store").touch()


@pytest.mark.parametrize("make", [nothing, empty, hidden])
def test_with_no_images_there_is_nothing_to_do(fresh: Path, make: Callable[[Path], None]) -> None:
    """Not even a model is needed."""
    make(fresh / "to-segment")
    state = segment_scheduled(fresh / "to-segment", return_state=True)
    assert state.is_completed()
    assert state.message.startswith("Nothing to do")


def test_what_waits_is_segmented_once(copied: Any) -> None:
    folder = copied.home / "to-segment"
    shutil.copytree(copied.lab_b / "images", folder)
    (folder / "broken.png").write_bytes(b"no image")
    first, second = (segment_scheduled(folder, return_state=True) for _ in range(2))
    assert first.is_completed()
    out = copied.home / "segmentations" / "to-segment"
    assert first.message == f"6 segmented, 0 were before, 1 could not be; outputs in {out}."
    assert second.message.startswith("0 segmented, 6 were before, 1 could not be")
    assert len(list(out.glob("*.geojson"))) == 6


def test_an_earlier_versions_work_is_left_unless_asked(copied: Any) -> None:
    folder, out = copied.home / "to-segment", copied.home / "segmentations" / "to-segment"
    shutil.copytree(copied.lab_b / "images", folder)
    copied.registry.promote(1)
    segment_scheduled(folder)
    copied.registry.promote(2)
    shutil.copy(folder / "lab_b_000.png", folder / "new.png")
    changed = read_image(folder / "lab_b_001.png")
    write_png(folder / "lab_b_001.png", 255 - changed)
    assert segment_scheduled(folder, return_state=True).message.startswith("2 segmented, 5 were before")
    models = pd.read_csv(out / "summary.csv").set_index("image")["model"]
    assert set(models[["new.png", "lab_b_001.png"]]) == {"microseg-segmenter/2"}
    assert set(models.drop(["new.png", "lab_b_001.png"])) == {"microseg-segmenter/1"}
    state = segment_scheduled(folder, ("schedule.resegment=true",), return_state=True)
    assert state.message.startswith("5 segmented, 2 were before")


def test_a_labs_own_version_segments_its_images(copied: Any) -> None:
    folder = copied.home / "to-segment"
    shutil.copytree(copied.lab_b / "images", folder / "others")
    shutil.copytree(copied.lab_b, folder / "lab_b", ignore=shutil.ignore_patterns("test"))
    copied.registry.promote(1, alias="production-lab_b")
    state = segment_scheduled(folder, return_state=True)
    assert state.is_completed(), state.message
    outs = {name: copied.home / "segmentations" / "to-segment" / name for name in ("others", "lab_b")}
    models = {name: set(pd.read_csv(out / "summary.csv")["model"]) for name, out in outs.items()}
    assert models == {"others": {"microseg-segmenter/2"}, "lab_b": {"microseg-segmenter/1"}}


def test_a_moved_alias_is_looked_at_before_it_is_used(copied: Any) -> None:
    """Whether or not anybody was told of it."""
    folder = copied.home / "to-segment"
    shutil.copytree(copied.lab_b / "images", folder)
    copied.registry.set_tags(1, {"gate": "never asked"})
    copied.registry.set_alias("production", 1)
    segment_scheduled(folder)
    assert copied.aliases == {"production": 2, "previous": 1}
    models = pd.read_csv(copied.home / "segmentations" / "to-segment" / "summary.csv")["model"]
    assert set(models) == {"microseg-segmenter/2"}


def test_files_that_are_no_images_are_told(copied: Any) -> None:
    folder = copied.home / "to-segment"
    folder.mkdir()
    (folder / "notes.txt").write_text("soon")
    state = segment_scheduled(folder, return_state=True)
    assert state.is_failed()
    assert "expected images" in state.message
