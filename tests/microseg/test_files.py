"""Paths below allowed folders, full disks, and files that are not opened."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from microseg.errors import NoSpaceError
from microseg.files import atomic_write, disk_full_error, file_sha256, is_below, unsafe_reason, write_text_file


def test_paths_below_a_folder_are_found_with_their_links_followed(tmp_path: Path) -> None:
    share, secret = tmp_path / "share", tmp_path / "secret"
    for folder in (share, secret):
        folder.mkdir()
    (share / "images").symlink_to(secret)
    (tmp_path / "mount").symlink_to(share)
    assert is_below(share / "a.png", [share])
    assert is_below(share, [share])
    assert is_below(tmp_path / "mount" / "a.png", [share])
    assert is_below(share / "a.png", [tmp_path / "mount"])
    assert not is_below(share / ".." / "secret", [share])
    assert not is_below(share / "images" / "a.png", [share])
    assert not is_below(tmp_path / "shared", [share])
    assert not is_below(share, [])


def test_links_in_a_circle_are_below_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert not is_below(tmp_path / "a", [tmp_path])


# ---- full disks


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))


@pytest.mark.usefixtures("full_disk")
def test_a_file_that_does_not_fit_is_not_begun(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(
        NoSpaceError, match=r"a\.txt: .*disk is full: it needs 101 bytes, 100 are free.*nothing is lost"
    ):
        write_text_file(path, "x" * 101)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    write_text_file(path, "x" * 100)


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "no"), OSError(errno.EDQUOT, "no"), OSError("[Errno 28] No space left on device")]
)
def test_a_disk_that_becomes_full_is_reported_with_what_was_written(tmp_path: Path, error: OSError) -> None:
    def fill() -> None:
        with atomic_write(tmp_path / "a") as part:
            part.write_bytes(b"x" * 50)
            raise error

    with pytest.raises(NoSpaceError, match="it needs more than 150 bytes"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), disk_full_error(tmp_path):
        raise PermissionError(errno.EACCES, "no")


# ---- links and files that are none


def test_files_that_are_not_opened_have_a_reason(tmp_path: Path) -> None:
    delivery, secret = tmp_path / "delivery", tmp_path / "secret"
    delivery.mkdir()
    secret.write_text("x")
    (delivery / "a").write_text("x")
    links = {"inside": "a", "outside": secret, "up": "../secret", "none": "absent", "loop": "loop"}
    for name, target in links.items():
        (delivery / name).symlink_to(target)
    os.mkfifo(delivery / "fifo")
    reasons = {name: unsafe_reason(delivery / name, [delivery]) for name in (*links, "a", "fifo", "absent")}
    assert {name for name, reason in reasons.items() if not reason} == {"inside", "a", "absent"}
    assert "allowed_roots" in reasons["outside"]
    assert "FIFO" in reasons["fifo"]
    assert not unsafe_reason(delivery / "outside", [delivery, tmp_path])
    with pytest.raises(FileNotFoundError):
        file_sha256(delivery / "fifo")
