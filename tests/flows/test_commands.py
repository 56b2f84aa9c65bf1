"""Every command explains itself."""

import importlib
import runpy
import sys
from importlib.metadata import version
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
def test_help_of_each_command(module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As ``python -m flows.<name> --help``, in this process, because a new one takes seconds to start."""
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module(module, run_name="__main__")
    assert left.value.code == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "Usage:" in output
    if module in MODULES:
        summary = importlib.import_module(module).command.__doc__.split()
        assert " ".join(summary[:4]) in output


def test_help_lists_all_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["microseg", "--help"])
    with pytest.raises(SystemExit) as left:
        main.main()
    assert left.value.code == 0
    output = capsys.readouterr().out
    assert all(name in output for name in main.COMMANDS)


def test_a_subcommand_has_its_flows_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["microseg", "segment", "--help"])
    with pytest.raises(SystemExit) as left:
        main.main()
    assert left.value.code == 0
    assert "--mpp" in capsys.readouterr().out


def test_an_unknown_command_is_answered_with_a_similar_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["microseg", "sgement"])
    with pytest.raises(SystemExit) as left:
        main.main()
    assert left.value.code == 2
    assert "Did you mean 'segment'?" in capsys.readouterr().err


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["microseg", "--version"])
    with pytest.raises(SystemExit) as left:
        main.main()
    assert left.value.code == 0
    assert capsys.readouterr().out == f"microseg {version('microseg')}\n"
