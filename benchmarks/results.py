"""What all benchmarks share: arguments, result rows that are stored as they are finished, files of results, tables."""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from microseg.files import atomic_write

__all__ = [
    "ResultFile",
    "ResultRows",
    "Row",
    "argument_parser",
    "console_table",
    "markdown_table",
    "provenance",
    "spread",
    "table_cells",
]

Row = dict[str, Any]


def argument_parser(module: str, description: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    """Parser of the arguments of a benchmark, whose help shows the texts as they are written.

    Args:
        module: Module that is run, such as ``benchmarks.adaptation``.
        description: Text above the options, such as the module's documentation.
        epilog: Text below them.
    """
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f"python -m {module}", None, description, epilog, formatter_class=formatter)


@dataclass
class ResultRows:
    """Result rows in ``results.json`` of a folder; rows that are there already are read.

    Attributes:
        out: Folder, created if it does not exist.
        rows: Finished rows.
    """

    out: Path
    rows: list[Row] = field(init=False)

    def __post_init__(self) -> None:
        """Read the finished rows."""
        self.out.mkdir(parents=True, exist_ok=True)
        self.rows = json.loads(self.file.read_text()) if self.file.exists() else []

    @property
    def file(self) -> Path:
        """File of the rows."""
        return self.out / "results.json"

    def add(self, row: Row) -> None:
        """Append a row and write the file."""
        self.rows.append(row)
        with atomic_write(self.file) as part:
            part.write_text(json.dumps(self.rows, indent=1) + "\n")


class ResultFile:
    """JSON file of a benchmark's results, which begins with what they were measured with.

    Args:
        file: File to write; None to write none.
        module: Module that is run, such as ``benchmarks.adaptation``.
        arguments: Its arguments; default: those of this process.
    """

    def __init__(self, file: Path | None, module: str, arguments: Sequence[str] | None = None) -> None:
        self.file = file
        self._measured = {} if file is None else provenance(module, arguments)  # of the checkout before it has the file

    def write(self, **content: Any) -> None:
        """Write the results, in place of those written before."""
        if self.file is not None:
            with atomic_write(self.file) as part:
                content = {"provenance": self._measured | {"machine": _machine()}, **content}
                part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def table_cells(table: pd.DataFrame) -> dict[str, list[Any]]:
    """A table as `benchmarks.report` reads it: names of columns, and rows of cells."""
    return {"columns": list(table.columns), "rows": table.astype(str).to_numpy().tolist()}


def console_table(table: pd.DataFrame, title: str) -> Table:
    """Table for rich's console.

    Args:
        table: Rows and columns; the index is not shown.
        title: Title above the table.
    """
    shown = Table(*table.columns, title=title, title_justify="left")
    for line in table.itertuples(index=False):
        shown.add_row(*(str(value) for value in line))
    return shown


def markdown_table(table: pd.DataFrame) -> str:
    """Table in Markdown, without the index."""
    columns = list(table.columns)
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(str(value) for value in line) for line in table.itertuples(index=False)]
    return "".join(f"| {line} |\n" for line in lines)


def spread(values: Sequence[float], digits: int) -> str:
    """Median, minimum and maximum of repeated measurements: ``1.03 (0.98 to 1.10)``; of a single one its value."""
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle


def provenance(module: str, arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """What a result was measured with: command, date, commit of the checkout, machine.

    Args:
        module: Module that was run, such as ``benchmarks.adaptation``.
        arguments: Its arguments; default: those of this process. Of absolute paths only the last part is stated.
    """
    given = sys.argv[1:] if arguments is None else arguments
    words = ["python", "-m", module, *(Path(it).name if Path(it).is_absolute() else it for it in given)]
    today = datetime.now(UTC).date().isoformat()
    return {"command": shlex.join(words), "date": today, "commit": _commit(), "machine": _machine()}


def _machine() -> str:
    load = f", {os.getloadavg()[0]:.1f} processes waiting or running at the end" if hasattr(os, "getloadavg") else ""
    return f"{os.cpu_count() or 1} cores{load}"


def _commit() -> str | None:
    """Commit of the checkout, with a note where files differ from it; None outside of a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=, with changes", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
