"""The built wheel works in an empty environment and an empty folder, without the checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TINY = [
    "network.encoder=blocks",
    "network.weights=null",
    "network.channels=[4, 8]",
    "network.pyramid_channels=8",
    *(f"{section}.{value}" for section in ("train", "adapt") for value in ("steps=2", "crop_size=32", "batch_size=2")),
    *(f"demo.{value}" for value in ("images_a=8", "images_b=4", "test_images=2", "image_size=64")),
]
# Runs at the end of every process of the environment, Prefect's temporary server included.
NOTHING_FROM_CHECKOUT = f"""
import atexit, os, sys

@atexit.register
def check():
    files = [str(getattr(module, "__file__", None)) for module in list(sys.modules.values())]
    found = [file for file in files if file.startswith(tuple(f"{{root}}/{{it}}" for root in {[str(ROOT)]!r}
                                                             for it in ("microseg", "flows", "benchmarks", "tests")))]
    if found:
        print("imported from the checkout:", found, file=sys.stderr, flush=True)
        os._exit(77)
"""


def environment() -> dict[str, str]:
    """The environment without what would lead to the checkout, to servers or to settings."""
    foreign = ("PREFECT_", "MLFLOW_", "MICROSEG_", "PYTHON")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is written into the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for package in ("microseg", "flows"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(out)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True, env=environment())
    (file,) = out.glob("microseg-*.whl")
    return file


class Installation:
    """A virtual environment with the wheel and, from the environment of the tests, its dependencies.

    Args:
        root: Folder for the environment.
        wheel: The wheel.
    """

    def __init__(self, root: Path, wheel: Path) -> None:
        self.bin = root / "environment" / "bin"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / "environment"], check=True)
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python")]
        subprocess.run(
            [*pip, "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", wheel],
            check=True,
            env=environment(),
        )
        packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(root / "environment")}))
        shared = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
        (packages / "dependencies.pth").write_text("".join(f"{path}\n" for path in shared))
        (packages / "sitecustomize.py").write_text(NOTHING_FROM_CHECKOUT)
        self.environment = environment() | {"PREFECT_HOME": str(root / "prefect"), "HOME": str(root)}

    def run(self, folder: Path, *command: str, code: int = 0) -> str:
        """Run a program of the environment in a folder; return its output. It has to end with an exit code."""
        program, *arguments = command
        done = subprocess.run(
            [self.bin / program, *arguments],
            cwd=folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def installation(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("installed"), wheel)


def test_wheel_contains_both_packages_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in ("microseg", "flows")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert names == expected
    assert {"microseg/py.typed", "flows/py.typed", "microseg/__init__.pyi"} < names
    assert any(name.endswith(".j2") for name in names)


def test_reading_commands_write_nothing(installation: Installation, tmp_path: Path) -> None:
    assert "segment" in installation.run(tmp_path, "microseg", "--help")
    assert "--json" in installation.run(tmp_path, "microseg", "status", "--help")
    assert "does not exist yet" in " ".join(installation.run(tmp_path, "microseg", "status").split())
    assert list(tmp_path.iterdir()) == []


def test_api_is_importable_and_built_in_extensions_are_registered(installation: Installation, tmp_path: Path) -> None:
    code = (
        "from microseg import Segmenter, adapt, train; print(Segmenter.__module__)\n"
        "from microseg.plugins import GROUPS, plugin_names; print([it for it in GROUPS if not plugin_names(it)])"
    )
    assert installation.run(tmp_path, "python", "-c", code) == "microseg.api.segmenter\n[]\n"


@pytest.mark.long
def test_demo_runs_without_a_file_of_parameters(installation: Installation, tmp_path: Path) -> None:
    changes = [word for change in TINY for word in ("--set", change)]
    installation.run(tmp_path, "microseg", "demo", *changes)
    report = json.loads((tmp_path / "var" / "demo" / "report.json").read_text())
    assert set(report["dice"]) == {"lab_a", "lab_b"}
    assert report["production_version"] in {1, 2}
    assert [path.name for path in tmp_path.iterdir()] == ["var"]
    status = json.loads(installation.run(tmp_path, "microseg", "status", "--json"))
    assert [lab["lab"] for lab in status["labs"]] == ["lab_a", "lab_b"]
    assert "var can be written" in installation.run(tmp_path, "microseg", "doctor")
    (tmp_path / "empty").mkdir()
    assert "No microseg home" in installation.run(tmp_path / "empty", "microseg", "doctor")
    assert list((tmp_path / "empty").iterdir()) == []
