"""Tables of the results of ``python -m benchmarks.objects --json``."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from benchmarks.results import markdown_table, spread

__all__ = ["object_speed_table", "object_table"]

_COLUMNS = {
    "f1": "F1 at IoU 0.5",
    "mean_f1": "F1, mean of 0.5 to 0.95",
    "pq": "PQ",
    "aji": "AJI",
    "count_error": "error of the number",
    "dice": "Dice",
}


def object_table(results: Sequence[dict[str, Any]]) -> str:
    """A line for each network and way of telling objects apart, on each lab: medians over the seeds, least and most."""
    rows = [row for result in results for row in result["rows"]]
    lines: list[dict[str, str]] = []
    for task, target, method in dict.fromkeys((row["task"], row["target"], row["method"]) for row in rows):
        group = [row for row in rows if (row["task"], row["target"], row["method"]) == (task, target, method)]
        line: dict[str, str] = {"task": task, "lab": "target" if target else "source"}
        line |= {"network, objects": method.replace("_", " "), "seeds": ", ".join(str(row["seed"]) for row in group)}
        lines.append(line | {title: spread([row[key] for row in group], 3) for key, title in _COLUMNS.items()})
    lines.sort(key=lambda it: (it["task"], it["lab"] != "target"))
    return markdown_table(pd.DataFrame(lines))


def object_speed_table(results: Sequence[dict[str, Any]]) -> str:
    """A line for each task: time of the network with the head and of its objects, against the network without it."""
    lines = [
        {
            "task": row["task"],
            "with head, s per megapixel": f"{row['seconds_per_megapixel_with_head']:.2f}",
            "of these objects": f"{row['of_these_objects_with_head']:.2f}",
            "without head": f"{row['seconds_per_megapixel_semantic']:.2f}",
            "ratio (least to most)": f"{row['ratio']:.2f} ({row['least']:.2f} to {row['most']:.2f})",
        }
        for result in results
        for row in result["speed"]
    ]
    return markdown_table(pd.DataFrame(lines))
