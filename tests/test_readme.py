"""The commands of the README run; its links lead to files."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from flows.cli.main import COMMANDS
from flows.service.events import ALREADY_SUITED, LAB_ARRIVED, PROMOTION_REQUESTED, REVIEW_REQUESTED
from microseg.plugins import GROUPS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
LINES = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]

EVENTS = (ALREADY_SUITED, LAB_ARRIVED, PROMOTION_REQUESTED, REVIEW_REQUESTED)

TINY = {
    "network": {"encoder": "blocks", "weights": None, "channels": [4, 8], "pyramid_channels": 8},
    "train": {"steps": 2, "crop_size": 32, "warmup_steps": 0},
    "adapt": {"steps": 2, "crop_size": 32, "warmup_steps": 0},
    "demo": {"images_a": 8, "images_b": 4, "test_images": 2, "image_size": 64},
    # the gate has to accept a poor network, for the commands that follow
    "gate": {
        "max_source_loss": 1.0,
        "min_criterion_gain": -1.0,
        "min_foreground_ratio": 1e-9,
        "max_foreground_ratio": 1e9,
        "max_foreground_change": 1e9,
        "max_forward_validation_loss": 1.0,
        "collapse_share": 0.0,
    },
}


def test_every_command_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert len(LINES) > 8
    for line in LINES:
        words = shlex.split(line)
        if words[0] == "make":
            assert words[1] in targets, line
        elif words[0] == "microseg":
            assert words[1] in {*COMMANDS, "service", "--help"}, line
        else:
            assert words[0] in {".", "export", "curl"}, line


def test_lab_yaml_is_valid() -> None:
    from microseg.datasets.lab import LabMetadata

    (text,) = re.findall(r"^```yaml\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert LabMetadata.model_validate(yaml.safe_load(text)).lab == "lab_c"


FILES = ["README.md", "CHANGELOG.md", "mlflow/README.md", *(f"docs/{it.name}" for it in sorted(ROOT.glob("docs/*.md")))]


@pytest.mark.parametrize("file", FILES)
def test_links_lead_to_files(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert link.startswith("https://") or (ROOT / file).parent.joinpath(link).exists(), link


@pytest.mark.parametrize("file", [it for it in FILES if it != "CHANGELOG.md"])  # it states former names, too
def test_modules_exist(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    for name in re.findall(r"(?:python -m |`)((?:benchmarks|microseg|flows)(?:\.[a-z_]+)+)", text):
        assert name in {*GROUPS, *EVENTS} or find_spec(name), name


@pytest.mark.parametrize("file", FILES)
def test_parameters_exist(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8").partition("### Renamed")[0]  # former names follow
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, name in re.findall(r"`(?:--set )?([a-z_]+)\.([a-z_]+)(?:[=:][^`]*)?`", text):
        file_name = name in ("json", "yaml", "csv")
        assert file_name or section not in params or name in params[section], f"{section}.{name}"
    if file == "docs/method.md":
        names = set(re.findall(r"`([a-z]+_[a-z_]+)`", text))
        assert names <= {*params["adapt"], *params["gate"]}


def test_python_example_names_what_exists() -> None:
    import microseg
    from microseg import Segmenter

    (text,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    compile(text, "README.md", "exec")
    (imported,) = re.findall(r"from microseg import (\w+)", text)
    assert imported in microseg.__all__
    assert all(hasattr(Segmenter, name) for name in re.findall(r"segmenter\.(\w+)\(", text))


@pytest.mark.long
def test_commands_run_in_order(tmp_path: Path) -> None:
    """In a copy of the checkout, at a path with a space, with a tiny network."""
    checkout = tmp_path / "a check out"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, checkout / name)
    _fake_installation(checkout)
    params = tmp_path / "tiny.yaml"
    params.write_text(yaml.safe_dump(TINY))
    foreign = ("PREFECT_", "MLFLOW_", "MICROSEG_", "MAKE", "ARGS")  # `make test` passes its own options on
    environment = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    environment |= {
        "MICROSEG_PARAMS": str(params),
        "PYTHONPATH": f"{checkout}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    for line in LINES:
        if line.startswith(("make test", "make serve", "export ", "curl ")):
            continue  # servers have their own tests
        line = line.replace("path/to/labelled/lab", "var/demo/incoming/lab_a")
        line = line.replace("path/to/new/lab", "var/demo/incoming/lab_b")
        command = f". .venv/bin/activate && {line}" if not line.startswith("make") else line
        done = subprocess.run(["bash", "-c", command], cwd=checkout, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert (checkout / "var" / "demo" / "report.html").is_file()


def _fake_installation(checkout: Path) -> None:
    """Create ``.venv``, as the Makefile and the README use it, with programs of the environment that runs the tests."""
    folder = checkout / ".venv" / "bin"
    folder.mkdir(parents=True)
    scripts = {
        "python": f"exec {shlex.quote(sys.executable)}",
        "microseg": "exec python -m flows.cli.main",
    }
    for name, run in scripts.items():
        (folder / name).write_text(f'#!/usr/bin/env bash\n{run} "$@"\n')
        (folder / name).chmod(0o755)
    (folder / "activate").write_text(f'export PATH="{folder}:$PATH"\n')
    (checkout / ".venv" / "installed").touch()
    os.utime(checkout / ".venv" / "installed", (2**31, 2**31))
