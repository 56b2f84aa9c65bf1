import csv
import hashlib
from datetime import datetime

import pytest

from microseg.datasets.checks import RejectedFile
from microseg.datasets.quarantine import quarantine_files


def write_rejected(tmp_path, content=b"bad", name="images/x.png"):
    source = tmp_path / "source"
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).write_bytes(content)
    return source


def lines(folder):
    with (folder / "reasons.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_copies_file_and_reason(tmp_path):
    source, kept = write_rejected(tmp_path), tmp_path / "quarantine" / "north"
    quarantine_files(source, [RejectedFile("images/x.png", 'a "reason", with\na comma: é')], kept)
    assert (kept / "images" / "x.png").read_bytes() == b"bad"
    assert (source / "images" / "x.png").read_bytes() == b"bad"
    (line,) = lines(kept)
    assert line["file"] == "images/x.png"
    assert line["reason"] == 'a "reason", with\na comma: é'
    assert line["sha256"] == hashlib.sha256(b"bad").hexdigest()
    assert datetime.fromisoformat(line["when"]).tzinfo is not None


def test_same_file_and_reason_is_not_added_again(tmp_path):
    source, kept = write_rejected(tmp_path), tmp_path / "q"
    for _ in range(2):
        quarantine_files(source, [RejectedFile("images/x.png", "reason")], kept)
    assert len(lines(kept)) == 1
    quarantine_files(source, [RejectedFile("images/x.png", "another reason")], kept)
    assert [line["reason"] for line in lines(kept)] == ["reason", "another reason"]


def test_other_content_of_the_same_name_is_kept_too(tmp_path):
    kept = tmp_path / "q"
    for content in (b"first", b"second", b"first"):
        quarantine_files(write_rejected(tmp_path, content), [RejectedFile("images/x.png", "reason")], kept)
    assert sorted(path.read_bytes() for path in (kept / "images").iterdir()) == [b"first", b"second"]
    assert (kept / "images" / "x.png").read_bytes() == b"first"
    assert len(lines(kept)) == 2


@pytest.mark.parametrize(("slide", "links"), [("images/a.svs", 2), (None, 1)])
def test_slides_are_linked(tmp_path, slide, links):
    source, kept = write_rejected(tmp_path, name="images/a.svs"), tmp_path / "q"
    for _ in range(2):
        quarantine_files(source, [RejectedFile("images/a.svs", "reason", slide)], kept)
    assert (kept / "images" / "a.svs").read_bytes() == b"bad"
    assert (source / "images" / "a.svs").stat().st_nlink == links
    assert [line["sha256"] for line in lines(kept)] == [hashlib.sha256(b"bad").hexdigest()]
    assert [path.name for path in (kept / "images").iterdir()] == ["a.svs"]


def test_keeps_the_target_of_a_linked_slide(tmp_path):
    source, kept = write_rejected(tmp_path, name="archive/a.svs"), tmp_path / "q"
    (source / "images").mkdir()
    (source / "images" / "a.svs").symlink_to("../archive/a.svs")
    quarantine_files(source, [RejectedFile("images/a.svs", "reason", "images/a.svs")], kept)
    assert not (kept / "images" / "a.svs").is_symlink()
    assert (kept / "images" / "a.svs").read_bytes() == b"bad"


def test_records_files_that_cannot_be_copied(tmp_path):
    source, kept = write_rejected(tmp_path), tmp_path / "q"
    quarantine_files(source, [RejectedFile("images/gone.png", "reason")], kept)
    assert [(line["file"], line["sha256"]) for line in lines(kept)] == [("images/gone.png", "")]
