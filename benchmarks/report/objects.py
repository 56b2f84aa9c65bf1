"""Tables of the results of ``python -m benchmarks.objects --json``."""

from collections.abc import Sequence
from statistics import median
from typing import Any

import pandas as pd

from benchmarks.results import Row, markdown_table, spread

__all__ = ["adapted_object_table", "object_speed_table", "object_table", "object_targets"]

_COLUMNS = {
    "f1": "F1 at IoU 0.5",
    "mean_f1": "F1, mean of 0.5 to 0.95",
    "pq": "PQ",
    "aji": "AJI",
    "count_error": "error of the number",
    "dice": "Dice",
}

_GAIN = 0.05  # of F1 above connected regions
_COUNT = 0.05
_DICE = -0.005  # with the head, less that without it


def object_targets(results: Sequence[dict[str, Any]]) -> str:
    """What is wanted of the objects of the instance head, and reached on each task: medians over the seeds."""
    rows = _rows(results)
    tasks = sorted({row["task"] for row in rows})

    def value(task: str, method: str, key: str, *, target: bool = True) -> float:
        asked = (task, method, target)
        return float(median(row[key] for row in rows if (row["task"], row["method"], row["target"]) == asked))

    def line(wanted: str, reached: dict[str, tuple[float, bool]], form: str) -> dict[str, str]:
        return {"wanted": wanted} | {
            task: f"{number:{form}}" if good else f"**{number:{form}}**" for task, (number, good) in reached.items()
        }

    gains = {it: value(it, "adapted instances", "f1") - value(it, "adapted components", "f1") for it in tasks}
    errors = {it: value(it, "adapted instances", "count_error") for it in tasks}
    lines = [
        line(
            f"F1 at IoU 0.5, adapted, target lab: {_GAIN:g} above connected regions",
            {task: (gain, gain >= _GAIN) for task, gain in gains.items()},
            "+.3f",
        ),
        line(
            f"error of the number, adapted, target lab: at most {_COUNT:g}",
            {task: (error, error <= _COUNT) for task, error in errors.items()},
            ".3f",
        ),
    ]
    for lab, target in (("source", False), ("target", True)):
        changes = {
            task: value(task, "source_only components", "dice", target=target)
            - value(task, "semantic source_only components", "dice", target=target)
            for task in tasks
        }
        lines.append(
            line(
                f"Dice with the head less that without it, before adaptation, {lab} lab: at least {_DICE:g}",
                {task: (change, change >= _DICE) for task, change in changes.items()},
                "+.3f",
            )
        )
    return markdown_table(pd.DataFrame(lines))


def adapted_object_table(results: Sequence[dict[str, Any]]) -> str:
    """`object_table` of the adapted networks with the head on the target lab."""
    rows = [row for row in _rows(results) if row["target"] and row["method"].startswith("adapted ")]
    return object_table([{"rows": rows}])


def object_table(results: Sequence[dict[str, Any]]) -> str:
    """A line for each network and way of telling objects apart, on each lab: medians over the seeds, least and most."""
    rows = _rows(results)
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


def _rows(results: Sequence[dict[str, Any]]) -> list[Row]:
    return [row for result in results for row in result["rows"]]
