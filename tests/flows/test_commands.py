"""Every command explains itself."""

import importlib
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import flows
from flows.cli import main

ROOT = Path(flows.__file__).parent
MODULES = {module: name for name, (module, _) in {**main.COMMANDS, **main.SERVICE_COMMANDS}.items()}


def test_every_command_is_listed() -> None:
    with_commands = {
        ".".join(("flows", *path.relative_to(ROOT).with_suffix("").parts))
        for path in ROOT.rglob("*.py")
        if "def command(" in path.read_text()
    }
    assert with_commands == set(MODULES)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("module", [*MODULES, "flows.pipeline"])
def test_help_of_a_module(module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As ``python -m flows.<name> --help``, in this process, as a new one takes seconds to start."""
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module(module, run_name="__main__")
    assert left.value.code == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "Usage:" in output
    if module in MODULES:
        summary = importlib.import_module(module).command.__doc__.split()
        assert " ".join(summary[:4]) in output


def test_help_of_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["microseg", "--help"])
    with pytest.raises(SystemExit) as left:
        main.main()
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert all(name in said for name in main.COMMANDS)


def test_a_subcommand_is_the_flows_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["microseg", "segment", "--help"])
    with pytest.raises(SystemExit) as left:
        main.main()
    assert left.value.code == 0
    assert "--mpp" in capsys.readouterr().out


def test_the_command_runs_from_any_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "MICROSEG_HOME": str(tmp_path / "a home")}
    environment.pop("PREFECT_HOME")
    command = [sys.executable, "-m", "flows.cli.main", "rollback", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--reason" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["a home"]
