"""Tables of the results of ``python -m benchmarks.gpu --json``."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd

from benchmarks.results import markdown_table

__all__ = ["gpu_correctness", "gpu_name", "gpu_speed"]


def gpu_name(result: dict[str, Any]) -> str:
    """Name of the GPU, as its driver states it."""
    return str(next(iter(result["sections"].values()))["machine"]["gpu"])


def gpu_correctness(results: Sequence[dict[str, Any]]) -> str:
    """A line for each comparison with float64 on the CPU: error and tolerance."""
    return _table(
        {"compared": row["name"], "error": f"{row['value']:.2g}", "tolerance": f"≤ {row['tolerance']:g}"}
        for result in results
        for row in _rows(result)
        if row.get("tolerance") is not None
    )


def gpu_speed(results: Sequence[dict[str, Any]]) -> str:
    """A line for each measurement, a column for each GPU; of several results of one GPU, that of the last file."""
    names = list(dict.fromkeys(gpu_name(result) for result in results))
    lines: dict[str, dict[str, str]] = {}
    notes: dict[str, dict[str, str]] = {}
    for result in results:
        for row in _rows(result):
            if row.get("tolerance") is None and ", batch of" not in row["name"]:  # of batches, the best one has a line
                line = lines.setdefault(row["name"], {"measured": row["name"], **dict.fromkeys(names, "–")})
                line[gpu_name(result)] = _value(row)
                notes.setdefault(row["name"], {})[gpu_name(result)] = row["note"]
    return _table(line | {"note": "; ".join(dict.fromkeys(notes[name].values()))} for name, line in lines.items())


def _rows(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, section in result["sections"].items():
        if name != "data":  # the size of the generated images
            yield from section["rows"]


def _value(row: dict[str, Any]) -> str:
    def number(value: float) -> str:
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    values = row["values"]
    spread = f" ({number(min(values))} to {number(max(values))})" if len(values) > 1 else ""
    return f"{number(row['value'])} {row['unit']}{spread}"


def _table(lines: Iterable[dict[str, str]]) -> str:
    return markdown_table(pd.DataFrame(list(lines)))
