"""The folder of a lab's dataset: one writer at a time, and replaced as a whole."""

import threading
from pathlib import Path

import pytest

from microseg.datasets.dataset_folder import lab_lock, replace_folder
from microseg.errors import LabError


def folder(path: Path, content: str) -> Path:
    path.mkdir(parents=True)
    (path / "manifest.csv").write_text(content)
    return path


def contents(labs: Path) -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in sorted(labs.glob("*/manifest.csv"))}


def test_folder_is_created_and_replaced(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with lab_lock(tmp_path, "lab_a") as new:
            replace_folder(tmp_path / "lab_a", folder(new, content))
        assert contents(tmp_path) == {"lab_a": content}


def test_what_does_not_replace_the_dataset_is_removed(tmp_path: Path) -> None:
    folder(tmp_path / "lab_a", "first")
    with lab_lock(tmp_path, "lab_a") as new:
        folder(new, "half")
    assert not new.exists()
    assert contents(tmp_path) == {"lab_a": "first"}


@pytest.mark.parametrize("existing", [True, False])
def test_what_a_killed_writer_left_is_repaired(tmp_path: Path, existing: bool) -> None:
    """Between its two renames there is no dataset, after them there are two: the new one counts."""
    folder(tmp_path / ".lab_a.old", "old")
    folder(tmp_path / ".lab_a.new", "half")
    if existing:
        folder(tmp_path / "lab_a", "new")
    with lab_lock(tmp_path, "lab_a") as new:
        assert not new.exists()
        assert contents(tmp_path) == {"lab_a": "new" if existing else "old"}


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    second = threading.Event()

    def write() -> None:
        with lab_lock(tmp_path, "lab_a"):
            second.set()

    with lab_lock(tmp_path, "lab_a"):
        thread = threading.Thread(target=write)
        thread.start()
        assert not second.wait(0.2)
        with lab_lock(tmp_path, "lab_b"):
            pass
    thread.join(10)
    assert second.is_set()


def test_name_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError), lab_lock(tmp_path, "../lab_a"):
        pass
