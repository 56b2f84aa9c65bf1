"""Tables of the commands at a width of 80 columns: no line is longer, and no value is cut."""

from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result
from rich.console import Console

from flows import evaluate, ingest, segment
from flows.cli import console
from flows.health import history, status


@pytest.mark.parametrize(
    ("command", "arguments", "values"),
    [
        (status.command, [], ["lab_a", "lab_b", "version 2"]),
        (history.command, [], ["production", "accepted"]),
        (ingest.command, ["{lab_b}"], ["Lab lab_b", "6"]),
        (evaluate.command, ["2", "--against", "1"], ["candidate", "lab_b"]),
        (segment.command, ["{lab_b}"], ["skipped", "Next: open "]),
    ],
    ids=["status", "history", "ingest", "evaluate", "segment"],
)
def test_tables_fit_80_columns(
    copied: Any,
    run: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., None],
    arguments: list[str],
    values: list[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = run(command, *(argument.format(lab_b=copied.lab_b) for argument in arguments))
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if str(copied.home) not in line]
    assert max(map(len, lines)) <= 80
    assert "…" not in result.stdout
    assert all(value in result.stdout for value in values)


def test_long_values_are_broken_into_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Console(width=80, record=True)
    monkeypatch.setattr(console, "console", recorder)
    console.show_table("Title", ("name", "digest", "value"), [("[lab]", "0123456789" * 8, 0.5), ("b", None, 2)])
    text = recorder.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("0123456789") >= 6
    assert "".join(text.split()).count("0123456789") == 7  # the eighth is broken
    assert "[lab]" in text
    assert text.split()[-3:] == ["b", "–", "2"]
