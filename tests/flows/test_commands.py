"""Every command explains itself."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from flows import cli

RUNNABLE = [*cli.COMMANDS, "pipeline"]


def test_the_list_names_every_flow() -> None:
    flows = Path(cli.__file__).parent
    with_commands = {path.stem for path in flows.glob("*.py") if "def command(" in path.read_text()}
    assert with_commands == set(cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_flow(run: Callable[..., Result], name: str) -> None:
    result = run(importlib.import_module(f"flows.{name}").command, "--help")
    assert result.exit_code == 0
    assert result.stdout.count("--") > 0
    first_words = importlib.import_module(f"flows.{name}").command.__doc__.split()[:3]
    assert " ".join(first_words) in " ".join(result.stdout.split())


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


def test_modules_run_from_any_folder(tmp_path: Path) -> None:
    """All at once, as starting one takes seconds; their homes are not made in the checkout."""
    environment = {**os.environ, "MICROSEG_HOME": str(tmp_path / "home"), "COLUMNS": "200"}
    environment.pop("PREFECT_HOME", None)
    started = {
        name: subprocess.Popen(
            [sys.executable, "-m", f"flows.{name}", "--help"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in RUNNABLE
    }
    for name, process in started.items():
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, f"{name}: {said}"
        assert "Usage:" in said
