"""A release is refused unless tag, version and changelog agree."""

import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from tests.docs.pages import ROOT

FILES = ("pyproject.toml", "CITATION.cff", "CHANGELOG.md")


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release_check", ROOT / ".github" / "release_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The files of a release that agree, of version 1.2.3."""
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path / name)
    replace(tmp_path / "pyproject.toml", r'^version = ".*"', 'version = "1.2.3"')
    replace(tmp_path / "CITATION.cff", r"^version: .*", "version: 1.2.3")
    replace(tmp_path / "CHANGELOG.md", r"^## .*", "## 1.2.3 (2026-12-01)")
    return tmp_path


def replace(path: Path, pattern: str, text: str) -> None:
    path.write_text(re.sub(pattern, text, path.read_text(), count=1, flags=re.MULTILINE))


def test_agreeing_files_are_released(check: ModuleType, root: Path) -> None:
    assert check.faults("v1.2.3", root) == []


@pytest.mark.parametrize("tag", ["v1.2.4", "1.2.3", "v1.2.3rc1"])
def test_another_tag_is_refused(check: ModuleType, root: Path, tag: str) -> None:
    assert [fault for fault in check.faults(tag, root) if f"got {tag}" in fault]


@pytest.mark.parametrize("heading", ["## 1.2.3 (unreleased)", "## 1.2.3", "## 1.2.2 (2026-12-01)", "## Unreleased"])
def test_an_undated_or_other_entry_is_refused(check: ModuleType, root: Path, heading: str) -> None:
    replace(root / "CHANGELOG.md", r"^## .*", heading)
    assert any("CHANGELOG.md" in fault for fault in check.faults("v1.2.3", root))


def test_another_citation_and_a_development_version_are_refused(check: ModuleType, root: Path) -> None:
    replace(root / "CITATION.cff", r"^version: .*", "version: 1.2.2")
    replace(root / "pyproject.toml", r'^version = ".*"', 'version = "1.2.3.dev0"')
    assert len(check.faults("v1.2.3.dev0", root)) == 3
