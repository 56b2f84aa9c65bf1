"""What the commands print: tables at a width of 80 columns without a value that is cut, and progress."""

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


def test_progress_is_printed_from_time_to_time_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress_bar("Evaluating", 10) as advance:
        for number in range(10):
            advance(f"image {number}")
    with console.progress_bar("Checking", None) as advance:
        for number in range(40):
            advance(f"{number + 1} of 48" if number < 30 else "")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["Evaluating: 2/10 image 1", "Evaluating: 4/10 image 3"]
    assert lines[4:] == ["Evaluating: 10/10 image 9", "Checking: 20 of 48", "Checking: 40"]
