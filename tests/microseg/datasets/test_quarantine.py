import csv
import hashlib
from datetime import datetime

import pytest

from microseg.datasets.checks import RejectedFile
from microseg.datasets.quarantine import quarantine_files


def deliver(tmp_path, content=b"bad", name="images/x.png"):
    source = tmp_path / "source"
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).write_bytes(content)
    return source


def lines(folder):
    with (folder / "reasons.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_copy_and_reason(tmp_path):
    source, kept = deliver(tmp_path), tmp_path / "quarantine" / "north"
    quarantine_files(source, [RejectedFile("images/x.png", 'a "reason", with\na comma: é')], kept)
    assert (kept / "images" / "x.png").read_bytes() == b"bad"
    assert (source / "images" / "x.png").read_bytes() == b"bad"
    (line,) = lines(kept)
    assert line["file"] == "images/x.png"
    assert line["reason"] == 'a "reason", with\na comma: é'
    assert line["sha256"] == hashlib.sha256(b"bad").hexdigest()
    assert datetime.fromisoformat(line["when"]).tzinfo is not None


def test_the_same_again_is_not_added(tmp_path):
    source, kept = deliver(tmp_path), tmp_path / "q"
    for _ in range(2):
        quarantine_files(source, [RejectedFile("images/x.png", "reason")], kept)
    assert len(lines(kept)) == 1
    quarantine_files(source, [RejectedFile("images/x.png", "another reason")], kept)
    assert [line["reason"] for line in lines(kept)] == ["reason", "another reason"]


def test_other_content_of_the_same_name_is_kept_beside(tmp_path):
    kept = tmp_path / "q"
    for content in (b"first", b"second", b"first"):
        quarantine_files(deliver(tmp_path, content), [RejectedFile("images/x.png", "reason")], kept)
    assert sorted(path.read_bytes() for path in (kept / "images").iterdir()) == [b"first", b"second"]
    assert (kept / "images" / "x.png").read_bytes() == b"first"
    assert len(lines(kept)) == 2


@pytest.mark.parametrize(("slide", "links"), [("images/a.svs", 2), (None, 1)])
def test_slides_take_no_space_of_their_own(tmp_path, slide, links):
    source, kept = deliver(tmp_path, name="images/a.svs"), tmp_path / "q"
    for _ in range(2):
        quarantine_files(source, [RejectedFile("images/a.svs", "reason", slide)], kept)
    assert (kept / "images" / "a.svs").read_bytes() == b"bad"
    assert (source / "images" / "a.svs").stat().st_nlink == links
    assert [line["sha256"] for line in lines(kept)] == [hashlib.sha256(b"bad").hexdigest()]
    assert [path.name for path in (kept / "images").iterdir()] == ["a.svs"]


def test_the_slide_that_a_link_leads_to_is_kept(tmp_path):
    source, kept = deliver(tmp_path, name="archive/a.svs"), tmp_path / "q"
    (source / "images").mkdir()
    (source / "images" / "a.svs").symlink_to("../archive/a.svs")
    quarantine_files(source, [RejectedFile("images/a.svs", "reason", "images/a.svs")], kept)
    assert not (kept / "images" / "a.svs").is_symlink()
    assert (kept / "images" / "a.svs").read_bytes() == b"bad"


def test_what_cannot_be_copied_is_still_written_down(tmp_path):
    source, kept = deliver(tmp_path), tmp_path / "q"
    quarantine_files(source, [RejectedFile("images/gone.png", "reason")], kept)
    assert [(line["file"], line["sha256"]) for line in lines(kept)] == [("images/gone.png", "")]
