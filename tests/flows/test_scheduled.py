"""The batch that runs by itself."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.scheduled import segment_waiting


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
    state = segment_waiting(fresh / "to-segment", return_state=True)
    assert state.is_completed()
    assert state.message.startswith("Nothing to do")


def test_what_waits_is_segmented_once(copied: Any) -> None:
    folder = copied.home / "to-segment"
    shutil.copytree(copied.lab_b / "images", folder)
    (folder / "broken.png").write_bytes(b"no image")
    first, second = (segment_waiting(folder, return_state=True) for _ in range(2))
    assert first.is_completed()
    out = copied.home / "segmentations" / "to-segment"
    assert first.message == f"6 segmented, 0 were before, 1 could not be; outputs in {out}."
    assert second.message.startswith("0 segmented, 6 were before, 1 could not be")
    assert len(list(out.glob("*.geojson"))) == 6


def test_files_that_are_no_images_are_told(copied: Any) -> None:
    folder = copied.home / "to-segment"
    folder.mkdir()
    (folder / "notes.txt").write_text("soon")
    state = segment_waiting(folder, return_state=True)
    assert state.is_failed()
    assert "expected images" in state.message
