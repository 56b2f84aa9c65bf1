"""Every command explains itself."""

import importlib
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from flows import cli


def test_the_list_names_every_flow() -> None:
    flows = Path(cli.__file__).parent
    with_commands = {path.stem for path in flows.glob("*.py") if "def command(" in path.read_text()}
    assert with_commands == set(cli.COMMANDS)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("name", [*cli.COMMANDS, "pipeline"])
def test_help_of_a_module(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As ``python -m flows.<name> --help``, in this process, as a new one takes seconds to start."""
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module(f"flows.{name}", run_name="__main__")
    assert left.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Usage:" in said
    if name in cli.COMMANDS:
        summary = importlib.import_module(f"flows.{name}").command.__doc__.split()
        assert " ".join(summary[:4]) in said


def test_help_of_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["microseg", "--help"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert all(name in said for name in cli.COMMANDS)


def test_a_subcommand_is_the_flows_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["microseg", "segment", "--help"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 0
    assert "--mpp" in capsys.readouterr().out


def test_the_command_runs_from_any_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "MICROSEG_HOME": str(tmp_path / "a home")}
    environment.pop("PREFECT_HOME")
    command = [sys.executable, "-m", "flows.cli", "rollback", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--reason" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["a home"]
