"""What people see in the terminal: progress bars, tables, errors that tell what to do."""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from microseg.errors import MicrosegError

__all__ = ["Advance", "console", "exit_on_error", "progress_bar", "show_table"]

console = Console(stderr=False, highlight=False)

Advance = Callable[[str], None]
"""Called at each step that is done, with a few words on how it went."""


@contextmanager
def progress_bar(title: str, total: int | None) -> Iterator[Advance]:
    """A progress bar while something long runs; plain lines now and then where the output is no terminal.

    Args:
        title: what is being done.
        total: number of steps; None when unknown.
    """
    if not console.is_terminal:
        yield _plain_progress(title, total)
        return
    columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console) as progress:
        task = progress.add_task(title, total=total, note="")
        yield lambda note: progress.update(task, advance=1, note=note)


def _plain_progress(title: str, total: int | None) -> Advance:
    done = 0
    every = max(1, (total or 100) // 5)

    def advance(note: str) -> None:
        nonlocal done
        done += 1
        if done % every == 0 or done == total:
            console.print(f"{title}: {done}{f'/{total}' if total else ''} {note}", markup=False)

    return advance


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table.

    Args:
        title: above it.
        columns: their headings.
        rows: their values; whole numbers are shown as such, others with three decimals, None and nan as a dash.
    """
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(shown(value) for value in row))
    console.print(table)


def shown(value: object) -> str:
    """A value for people's eyes."""
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown(item)}" for key, item in value.items())
    return str(value)


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn microseg's own errors into one message and exit code 1, and keep Prefect's tracebacks of them away."""
    if prefect := sys.modules.get("prefect.logging.handlers"):  # takes seconds to load, and some commands never do
        for handler in logging.getLogger().handlers:
            if isinstance(handler, prefect.PrefectConsoleHandler):
                handler.setLevel(logging.CRITICAL)
    try:
        yield
    except MicrosegError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("Interrupted. What was finished is kept; the same command goes on from there.", 130)


def _fail(message: str, code: int) -> NoReturn:
    Console(stderr=True, highlight=False).print(f"[bold red]microseg:[/] {message}", soft_wrap=True)
    sys.exit(code)
