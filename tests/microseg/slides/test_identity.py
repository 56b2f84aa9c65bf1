"""The hash of an image is that of all its files, and is not computed again for files that have not changed."""

import os
import time
from pathlib import Path

import pytest

from microseg.files import file_sha256
from microseg.slides import identity
from microseg.slides.identity import KnownHashes, source_sha256

OLD = time.time() - 3600


def write(path: Path, content: bytes, when: float = OLD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (when, when))
    return path


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read."""
    names: list[str] = []

    def spy(path: Path) -> str:
        names.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr(identity, "file_sha256", spy)
    return names


def test_hash_of_a_single_file_is_that_of_the_file(tmp_path: Path) -> None:
    for name in ("a.png", "b.svs", "c.mrxs"):
        path = write(tmp_path / name, b"x")
        assert source_sha256(path) == file_sha256(path)


@pytest.mark.parametrize("change", ["content", "name", "further", "missing"])
def test_hash_of_a_slide_depends_on_all_its_files(tmp_path: Path, change: str) -> None:
    slide, part = write(tmp_path / "a.mrxs", b"stub"), write(tmp_path / "a" / "Data0000.dat", b"pixels")
    before = source_sha256(slide)
    assert before != file_sha256(slide)
    if change == "content":
        part.write_bytes(b"others")
    elif change == "name":
        part.rename(part.with_name("Data0001.dat"))
    elif change == "further":
        write(part.with_name("Data0001.dat"), b"pixels")
    else:
        part.unlink()
    assert source_sha256(slide) != before


def test_files_that_have_not_changed_are_read_once(tmp_path: Path, hashed: list[str]) -> None:
    images = [write(tmp_path / "a.png", b"a"), write(tmp_path / "b.mrxs", b"b")]
    part = write(tmp_path / "b" / "Data0000.dat", b"pixels")
    expected = [source_sha256(image) for image in images]
    hashed.clear()
    for night in range(3):
        known = KnownHashes(tmp_path / "hashes.json")
        assert [known.sha256(image) for image in images] == expected
        known.save()
        assert hashed == (["a.png", "b.mrxs", "Data0000.dat"] if night == 0 else [])
        hashed.clear()
    write(part, b"others")  # of the same size
    os.utime(part, (OLD + 1, OLD + 1))
    assert KnownHashes(tmp_path / "hashes.json").sha256(images[1]) == source_sha256(images[1]) != expected[1]


def test_file_that_has_just_been_written_is_read_again(tmp_path: Path, hashed: list[str]) -> None:
    """Another change could leave its modification time as it is."""
    path = write(tmp_path / "a.png", b"a", time.time())
    known = KnownHashes(tmp_path / "hashes.json")
    assert known.sha256(path) == known.sha256(path)
    assert hashed == ["a.png", "a.png"]


def test_damaged_file_of_hashes_and_missing_images_count_as_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", b"a")
    for content in ("", "[]", '{"a": 1}', "{"):
        (tmp_path / "hashes.json").write_text(content)
        known = KnownHashes(tmp_path / "hashes.json")
        assert known.sha256(path) == file_sha256(path)
        known.save()
    assert known.sha256(tmp_path / "gone.png") == ""


def test_hashes_of_other_processes_are_kept(tmp_path: Path, hashed: list[str]) -> None:
    one, two = write(tmp_path / "a.png", b"a"), write(tmp_path / os.fsdecode(b"\xe9.png"), b"b")
    first, second = KnownHashes(tmp_path / "hashes.json"), KnownHashes(tmp_path / "hashes.json")
    first.sha256(one)
    second.sha256(two)
    first.save()
    second.save()
    hashed.clear()
    third = KnownHashes(tmp_path / "hashes.json")
    assert (third.sha256(one), third.sha256(two)) == (file_sha256(one), file_sha256(two))
    assert hashed == []
