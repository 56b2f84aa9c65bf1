"""A package outside microseg adds one of each extension point; it is installed and used through public interfaces."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from microseg.plugins import GROUPS

EXAMPLE = Path(__file__).parent / "plugins"
ADDED = {
    group: tuple(points)
    for group, points in tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["entry-points"].items()
}
"""Names that the package adds under each group."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of a process that has the package installed."""
    source, target = tmp_path_factory.mktemp("source") / "example", tmp_path_factory.mktemp("installed")
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__"))  # building writes into the source
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True)
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(target), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    }


def test_package_adds_one_of_each() -> None:
    assert set(ADDED) == set(GROUPS)
    assert all(ADDED.values())


def test_names_are_found_beside_the_built_in_ones(environment: dict[str, str], tmp_path: Path) -> None:
    code = "import json, microseg.plugins as p; print(json.dumps({group: p.plugin_names(group) for group in p.GROUPS}))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    for group, names in json.loads(done.stdout).items():
        assert set(ADDED[group]) < set(names), group


def test_each_is_used(environment: dict[str, str]) -> None:
    """The functions of ``plugins/check_example.py``, in one process that has the package installed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE / "check_example.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
