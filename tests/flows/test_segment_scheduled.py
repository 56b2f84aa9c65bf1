"""Scheduled batch segmentation."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flows.segment_scheduled import segment_scheduled
from microseg.inference.batch import batch_lock
from microseg.slides.images import read_image, write_png
from tests.flows.live import until


def nothing(_folder: Path) -> None:
    pass


def empty(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)


def hidden(folder: Path) -> None:
    folder.mkdir()
    (folder / ".DS_Store").touch()


@pytest.mark.parametrize("make", [nothing, empty, hidden])
def test_does_nothing_without_images(fresh: Path, make: Callable[[Path], None]) -> None:
    """No model is needed."""
    make(fresh / "to-segment")
    state = segment_scheduled(fresh / "to-segment", return_state=True)
    assert state.is_completed()
    assert state.message.startswith("Nothing to do")


def test_segments_each_image_once(copied: Any) -> None:
    folder = copied.home / "to-segment"
    shutil.copytree(copied.lab_b / "images", folder)
    (folder / "broken.png").write_bytes(b"no image")
    first, second = (segment_scheduled(folder, return_state=True) for _ in range(2))
    assert first.is_completed()
    out = copied.home / "segmentations" / "to-segment"
    assert first.message == f"6 segmented, 0 skipped, 1 failed; outputs in {out}."
    assert second.message.startswith("0 segmented, 6 skipped, 1 failed")
    assert len(list(out.glob("*.geojson"))) == 6


def test_keeps_outputs_of_earlier_versions_unless_resegment(copied: Any) -> None:
    folder, out = copied.home / "to-segment", copied.home / "segmentations" / "to-segment"
    shutil.copytree(copied.lab_b / "images", folder)
    copied.registry.production.promote(1)
    segment_scheduled(folder)
    copied.registry.production.promote(2)
    shutil.copy(folder / "lab_b_000.png", folder / "new.png")
    changed = read_image(folder / "lab_b_001.png")
    write_png(folder / "lab_b_001.png", 255 - changed)
    assert segment_scheduled(folder, return_state=True).message.startswith("2 segmented, 5 skipped")
    models = pd.read_csv(out / "summary.csv").set_index("image")["model"]
    assert set(models[["new.png", "lab_b_001.png"]]) == {"microseg-segmenter/2"}
    assert set(models.drop(["new.png", "lab_b_001.png"])) == {"microseg-segmenter/1"}
    state = segment_scheduled(folder, ("schedule.resegment=true",), return_state=True)
    assert state.message.startswith("5 segmented, 2 skipped")


def test_uses_the_production_version_of_the_lab(copied: Any) -> None:
    folder = copied.home / "to-segment"
    shutil.copytree(copied.lab_b / "images", folder / "others")
    shutil.copytree(copied.lab_b, folder / "lab_b", ignore=shutil.ignore_patterns("test"))
    copied.registry.production.promote(1, alias="production-lab_b")
    state = segment_scheduled(folder, return_state=True)
    assert state.is_completed(), state.message
    outs = {name: copied.home / "segmentations" / "to-segment" / name for name in ("others", "lab_b")}
    models = {name: set(pd.read_csv(out / "summary.csv")["model"]) for name, out in outs.items()}
    assert models == {"others": {"microseg-segmenter/2"}, "lab_b": {"microseg-segmenter/1"}}


def test_applies_pending_alias_change_before_use(copied: Any) -> None:
    """Whether or not an event reported it: the alias on the version before is a rollback."""
    folder = copied.home / "to-segment"
    shutil.copytree(copied.lab_b / "images", folder)
    copied.registry.versions.set_alias("production", 1)
    segment_scheduled(folder)
    assert copied.aliases == {"production": 1, "previous": 2}
    models = pd.read_csv(copied.home / "segmentations" / "to-segment" / "summary.csv")["model"]
    assert set(models) == {"microseg-segmenter/1"}


def test_fails_for_files_that_are_not_images(copied: Any) -> None:
    folder = copied.home / "to-segment"
    folder.mkdir()
    (folder / "notes.txt").write_text("soon")
    state = segment_scheduled(folder, return_state=True)
    assert state.is_failed()
    assert "expected images" in state.message


def test_one_bad_folder_does_not_stop_those_after_it(copied: Any) -> None:
    folder = copied.home / "to-segment"
    for name in ("a", "b", "c"):
        shutil.copytree(copied.lab_b / "images", folder / name, ignore=shutil.ignore_patterns("*_00[2-9]*"))
    (folder / "b" / "images.csv").write_text("file,weight\n")
    state = segment_scheduled(folder, return_state=True)
    assert state.is_failed()
    assert state.message.startswith("1 of 3 folders failed. 2 segmented, 0 skipped, 0 failed; outputs in ")
    assert "b was not segmented: " in state.message
    assert state.message.count("2 segmented") == 2
    (folder / "b" / "images.csv").unlink()
    state = segment_scheduled(folder, return_state=True)
    assert state.is_completed()
    assert state.message.count("2 segmented") == 1


def test_files_of_a_slide_are_not_images_of_the_batch(copied: Any) -> None:
    folder = copied.home / "to-segment"
    shutil.copytree(copied.lab_b / "images", folder)
    (folder / "a.vms").write_text("[Virtual Microscope Specimen]\nImageFile=lab_b_000.png\n")
    state = segment_scheduled(folder, return_state=True)
    assert state.message.startswith("5 segmented, 0 skipped, 1 failed")  # of the slide itself


def test_second_batch_into_a_folder_waits_for_the_first(copied: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied.home / "to-segment"
    shutil.copytree(copied.lab_b / "images", folder)
    out = copied.home / "segmentations" / "to-segment"
    messages: list[str] = []
    printed: list[str] = []

    def waits() -> bool:
        printed.append(capsys.readouterr().out)
        return f"is in use by process {os.getpid()} of" in " ".join("".join(printed).split())

    def second() -> None:
        messages.append(segment_scheduled(folder, return_state=True).message)

    with batch_lock([], out):
        thread = threading.Thread(target=second)
        thread.start()
        until(waits, "the message of the second batch")
        assert thread.is_alive()
        assert not list(out.glob("*.geojson"))
    thread.join()
    assert messages[0].startswith("6 segmented")
