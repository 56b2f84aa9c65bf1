"""Rows of a long benchmark, kept as they are finished, and tables of them for the console and for Markdown."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from microseg.files import atomic_write

__all__ = ["KeptRows", "Row", "console_table", "markdown_table"]

Row = dict[str, Any]


@dataclass
class KeptRows:
    """Finished rows in a folder; what is there already is read.

    Attributes:
        out: the folder; made where it is missing.
        rows: finished rows.
    """

    out: Path
    rows: list[Row] = field(init=False)

    def __post_init__(self) -> None:
        """Read the rows that are finished."""
        self.out.mkdir(parents=True, exist_ok=True)
        self.rows = json.loads(self.file.read_text()) if self.file.exists() else []

    @property
    def file(self) -> Path:
        """Where they are kept."""
        return self.out / "results.json"

    def add(self, row: Row) -> None:
        """Keep one more."""
        self.rows.append(row)
        with atomic_write(self.file) as part:
            part.write_text(json.dumps(self.rows, indent=1) + "\n")


def console_table(table: pd.DataFrame, title: str) -> Table:
    """For rich's console, the title at the left."""
    shown = Table(*table.columns, title=title, title_justify="left")
    for line in table.itertuples(index=False):
        shown.add_row(*(str(value) for value in line))
    return shown


def markdown_table(table: pd.DataFrame) -> str:
    """As Markdown."""
    columns = list(table.columns)
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(str(value) for value in line) for line in table.itertuples(index=False)]
    return "".join(f"| {line} |\n" for line in lines)
