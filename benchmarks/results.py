"""Result rows of a long benchmark, stored as they are finished, and their tables for the console and for Markdown."""

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

__all__ = ["ResultRows", "Row", "console_table", "markdown_table", "provenance", "spread"]

Row = dict[str, Any]


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
        arguments: Its arguments; default: those of this process.
    """
    words = ["python", "-m", module, *(sys.argv[1:] if arguments is None else arguments)]
    cores = os.cpu_count() or 1
    load = f", {os.getloadavg()[0]:.1f} processes waiting or running at the end" if hasattr(os, "getloadavg") else ""
    return {
        "command": shlex.join(words),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "machine": f"{cores} cores{load}",
    }


def _commit() -> str | None:
    """Commit of the checkout, with a note where files differ from it; None outside of a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=, with changes", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
