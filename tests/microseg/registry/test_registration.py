"""The commit of the code that registers a version."""

import subprocess
from pathlib import Path

import pytest

from microseg.registry.registration import code_commit


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init")
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    return tmp_path


def test_commit_of_a_clean_checkout(checkout: Path) -> None:
    (checkout / "package").mkdir()
    (checkout / "untracked.txt").write_text("notes")
    assert code_commit(checkout) == code_commit(checkout / "package") == git(checkout, "rev-parse", "HEAD")


def test_commit_of_a_changed_checkout(checkout: Path) -> None:
    (checkout / "code.py").write_text("2")
    assert code_commit(checkout) == f"{git(checkout, 'rev-parse', 'HEAD')}-dirty"
    git(checkout, "add", ".")
    assert code_commit(checkout).endswith("-dirty")


def test_commit_is_unknown_without_checkout_or_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert code_commit(tmp_path) == "unknown"
    git(tmp_path, "init")
    assert code_commit(tmp_path) == "unknown"
    assert code_commit(tmp_path / "none") == "unknown"
    monkeypatch.setenv("PATH", "")
    assert code_commit(tmp_path) == "unknown"
