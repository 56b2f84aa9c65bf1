"""Table of the results of ``python -m benchmarks.gpu --json``."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from benchmarks.results import markdown_table

__all__ = ["gpu_table"]


def gpu_table(results: Sequence[dict[str, Any]]) -> str:
    """A line for each measurement: median, least and most, and the tolerance where it has one."""
    lines = []
    for result in results:
        for section in result["sections"].values():
            for row in section["rows"]:
                values, unit = row["values"], "" if row["unit"] == "error" else f" {row['unit']}"
                spread = f" ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else ""
                limit = f"≤ {row['tolerance']:g}" if row.get("tolerance") is not None else ""
                measured = f"{row['value']:.3g}{unit}{spread}"
                lines.append({"measured": row["name"], "result": measured, "tolerance": limit, "note": row["note"]})
    return markdown_table(pd.DataFrame(lines))
