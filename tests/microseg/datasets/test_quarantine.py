import csv
import hashlib
import os
import shutil
from datetime import datetime

import pytest

from microseg.datasets.listing import IncomingFiles, RejectedFile
from microseg.datasets.quarantine import quarantine_files
from microseg.errors import NoSpaceError


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


def test_what_cannot_be_kept_fails_the_ingest(tmp_path, monkeypatch):
    source, kept = write_rejected(tmp_path, b"x" * 200), tmp_path / "q"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(NoSpaceError, match=r"200 bytes, 100 are free\. The incoming dataset still has all its files"):
        quarantine_files(source, [RejectedFile("images/x.png", "reason")], kept)


def test_names_that_are_not_utf8_are_kept_under_their_names(tmp_path):
    source, kept = tmp_path / "source", tmp_path / "q"
    names = [os.fsdecode(name) for name in (b"a\xe9.png", b"a\xe8.png", b"b" * 251 + b".png", b"=1.png")]
    files = IncomingFiles(source)
    (source / "images").mkdir(parents=True)
    for name in names:
        (source / "images" / name).write_bytes(os.fsencode(name))
        files.reject(source / "images" / name, "reason")
    for _ in range(2):
        quarantine_files(source, files.rejected.values(), kept, paths=files.paths)
        assert {path.name: path.read_bytes() for path in (kept / "images").iterdir()} == {
            name: os.fsencode(name) for name in names
        }
        assert [line["file"] for line in lines(kept)][:2] == ["images/a\\xe9.png", "images/a\\xe8.png"]
    (source / "images" / names[2]).write_bytes(b"other")
    quarantine_files(source, files.rejected.values(), kept, paths=files.paths)
    assert len(list((kept / "images").iterdir())) == 5


def test_links_out_of_the_delivery_and_fifos_are_not_copied(tmp_path):
    source, kept, secret = write_rejected(tmp_path), tmp_path / "q", tmp_path / "secret"
    secret.write_text("secret")
    (source / "images" / "link.svs").symlink_to(secret)
    os.mkfifo(source / "images" / "fifo.png")
    rejected = [RejectedFile("images/link.svs", "r", "images/link.svs"), RejectedFile("images/fifo.png", "r")]
    quarantine_files(source, rejected, kept)
    assert not (kept / "images").exists()
    assert [line["sha256"] for line in lines(kept)] == ["", ""]
    quarantine_files(source, rejected, kept, roots=[tmp_path])
    assert (kept / "images" / "link.svs").read_text() == "secret"


def test_no_cell_of_the_reasons_is_a_formula(tmp_path):
    source = write_rejected(tmp_path, name="=cmd.png")
    for _ in range(2):
        quarantine_files(source, [RejectedFile("=cmd.png", "@reason")], tmp_path / "q")
    (line,) = lines(tmp_path / "q")
    assert (line["file"], line["reason"]) == ("'=cmd.png", "'@reason")
