import json
import subprocess

import pytest

from microseg.datasets.versions.store import DatasetVersion, code_commit
from microseg.errors import VersioningError

VERSION = DatasetVersion("north", f"{'0f' * 16}.dir", files=7, bytes=1234)


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    return tmp_path


def test_version_round_trip():
    assert VERSION.to_dict() == {"lab": "north", "digest": f"{'0f' * 16}.dir", "files": 7, "bytes": 1234}
    assert DatasetVersion.from_dict(json.loads(json.dumps(VERSION.to_dict()))) == VERSION


@pytest.mark.parametrize(
    "digest", ["", "x", "0f" * 16, f"{'0F' * 16}.dir", f"../{'0f' * 16}.dir", f"{'0f' * 16}.dir\n"]
)
def test_a_digest_that_is_none_is_refused(digest):
    with pytest.raises(VersioningError, match=r"32 hexadecimal digits and '\.dir'"):
        DatasetVersion("north", digest, 0, 0)


@pytest.mark.parametrize(
    "values", [{}, {"lab": "north"}, VERSION.to_dict() | {"files": "many"}, VERSION.to_dict() | {"bytes": None}]
)
def test_a_dictionary_that_is_no_version_is_refused(values):
    with pytest.raises(VersioningError, match="expected lab, digest, files and bytes"):
        DatasetVersion.from_dict(values)


def test_commit_of_a_clean_checkout(checkout):
    (checkout / "package").mkdir()
    (checkout / "untracked.txt").write_text("notes")
    assert code_commit(checkout) == code_commit(checkout / "package") == git(checkout, "rev-parse", "HEAD")


def test_commit_of_a_changed_checkout(checkout):
    (checkout / "code.py").write_text("2")
    assert code_commit(checkout) == f"{git(checkout, 'rev-parse', 'HEAD')}-dirty"
    git(checkout, "add", ".")
    assert code_commit(checkout).endswith("-dirty")


def test_no_checkout_no_commit_no_folder_no_git(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert code_commit(tmp_path) == "unknown"
    git(tmp_path, "init")
    assert code_commit(tmp_path) == "unknown"
    assert code_commit(tmp_path / "none") == "unknown"
    monkeypatch.setenv("PATH", "")
    assert code_commit(tmp_path) == "unknown"
