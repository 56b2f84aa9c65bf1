"""Terminal output: progress bars, tables, error messages."""

import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from microseg.errors import MicrosegError
from microseg.escaping import mask_secrets, printable

__all__ = ["Advance", "console", "exit_on_error", "progress_bar", "show_table"]


class _SafeConsole(Console):
    """A console that masks passwords and escapes control characters in all that it prints.

    Its output may go away, such as a pipe or a file on a full disk, without ending the work.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        """Print texts and tables; see the class of Rich."""
        with suppress(OSError):
            super().print(*(_safe(it) if isinstance(it, str) else it for it in objects), **options)

    def on_broken_pipe(self) -> None:
        """Go on without output."""
        self.quiet = True
        with suppress(OSError, ValueError):  # also what other code prints
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _safe(text: str) -> str:
    return mask_secrets(printable(text, keep="\n\t"))


console = _SafeConsole(stderr=False, highlight=False)

_SHORT = 12  # characters; columns of such values are not broken into lines

Advance = Callable[[str], None]
"""Called after each step, with a short note that is shown beside the bar."""


@contextmanager
def progress_bar(title: str, total: int | None) -> Iterator[Advance]:
    """Show a progress bar; where the output is not a terminal, print a line from time to time.

    Args:
        title: Name of the work.
        total: Number of steps; None when unknown.

    Yields:
        Function to call after each step.
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
            count = f"{done}/{total} {note}" if total else note or str(done)
            console.print(f"{title}: {count}".rstrip(), markup=False)

    return advance


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table that fits into 80 columns: long values are broken into several lines, and none is cut.

    Args:
        title: Title above the table.
        columns: Headings.
        rows: Values; floats are shown with three decimals, None and NaN as a dash.
    """
    cells = [[_format(value) for value in row] for row in rows]
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(columns):
        numeric = number > 0 and all(isinstance(row[number], int | float | None) for row in rows)
        short = max((len(row[number]) for row in cells), default=0) <= _SHORT
        table.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=short)
    for row in cells:
        table.add_row(*map(escape, row))
    console.print(table)


def _format(value: object) -> str:
    if value is None or value != value:  # NaN
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else _safe(str(value))


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn microseg's own errors into one message and exit code 1, and hide Prefect's tracebacks of them."""
    _show_warnings()
    if prefect := sys.modules.get("prefect.logging.handlers"):  # takes seconds to load, and some commands never do
        for handler in logging.getLogger().handlers:
            if isinstance(handler, prefect.PrefectConsoleHandler):
                handler.setLevel(logging.CRITICAL)
    try:
        yield
    except MicrosegError as error:
        _fail(str(error), 1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        what = f" while {error.filename} was written" if error.filename else ""
        _fail(f"The disk is full{what}. Nothing that was complete is lost: free some space, run the same again.", 1)
    except KeyboardInterrupt:
        _fail("Interrupted. Finished work is kept; run the same command again to continue.", 130)


class _Warnings(logging.Handler):
    """Prints the warnings of microseg's own code to standard error, as errors are."""

    def emit(self, record: logging.LogRecord) -> None:
        _SafeConsole(stderr=True, highlight=False).print("microseg:", record.getMessage(), soft_wrap=True, markup=False)


def _show_warnings() -> None:
    for name in ("flows", "microseg"):
        log = logging.getLogger(name)
        if not any(isinstance(handler, _Warnings) for handler in log.handlers):
            log.addHandler(_Warnings(logging.WARNING))


def _fail(message: str, code: int) -> NoReturn:
    _SafeConsole(stderr=True, highlight=False).print(f"[bold red]microseg:[/] {escape(message)}", soft_wrap=True)
    sys.exit(code)
