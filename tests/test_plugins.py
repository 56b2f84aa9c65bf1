"""A package outside microseg adds one of each extension point; it is installed and used through public interfaces."""

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from microseg import limits, plugins
from microseg.outputs import writers
from microseg.processes import IdleProcesses
from tests.plugins.check_example import (  # the tests of this module, too
    test_annotation_format,
    test_encoder_head_and_adaptation_method,
    test_output_writer,
    test_slide_reader,
)

__all__ = [
    "test_annotation_format",
    "test_encoder_head_and_adaptation_method",
    "test_output_writer",
    "test_slide_reader",
]

EXAMPLE = Path(__file__).parent / "plugins"
ADDED = {
    group: tuple(points)
    for group, points in tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["entry-points"].items()
}
"""Names that the package adds under each group."""


@pytest.fixture(scope="module", autouse=True)
def _installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """This process, and those that it starts, have the package installed."""
    source, target = tmp_path_factory.mktemp("source") / "example", tmp_path_factory.mktemp("installed")
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__"))  # building writes into the source
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(target)
        patch.setattr(limits, "_idle", IdleProcesses(limits._Child))  # the others started without the package
        forget()
        yield
    forget()


def forget() -> None:
    """Forget which packages are installed."""
    for cached in (plugins.create_plugins, plugins._entry_points, writers.output_suffixes):
        cached.cache_clear()


def test_package_adds_one_of_each() -> None:
    assert set(ADDED) == set(plugins.GROUPS)
    assert all(ADDED.values())


def test_names_are_found_beside_the_built_in_ones() -> None:
    for group in plugins.GROUPS:
        assert set(ADDED[group]) < set(plugins.plugin_names(group)), group
