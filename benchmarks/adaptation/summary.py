"""Summary of the results: a table of each task, one of the methods over all tasks, and a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd

from benchmarks.adaptation.methods import SOURCE_ONLY, UPPER_BOUND

__all__ = ["draw", "rank", "summarize"]

_HARM = 0.01  # loss of Dice from which a method harmed a lab
_GAP = 0.03  # smallest gap between source only and upper bound of which a fraction is meaningful


def summarize(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One line for each task and method: mean ± spread (standard deviation over seeds) and share of the gap recovered.

    The gap is that between ``source_only`` and ``upper_bound`` of the same seed; where a seed has no upper bound, the
    mean of those that have one.
    """
    table = pd.DataFrame(rows)
    lines = []
    for (task, method), group in table.groupby(["task", "method"], sort=False):
        lines.append(
            {
                "task": task,
                "method": method,
                "seeds": len(group),
                "source": _spread(group["source_dice"]),
                "target": _spread(group["target_dice"]),
                "recovered": _spread(pd.Series([_recovered(table, row) for _, row in group.iterrows()]), percent=True),
                "worst": f"{min(_gain(table, row) for _, row in group.iterrows()):+.3f}",
                "minutes": f"{group['minutes'].mean():.1f}",
            }
        )
    return pd.DataFrame(lines)


def rank(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One line for each method, over all tasks and seeds, best mean rank first.

    ``rank`` is the mean of the method's ranks by target Dice among the methods of the same task and seed, without the
    upper bound; ``gain`` and ``worst`` are the mean and the smallest gain over ``source_only``, and ``harmed`` is how
    often more than 0.01 was lost; ``recovered`` is the mean share of the gap where the gap is 0.03 or more;
    ``source`` is the largest loss on the source lab.
    """
    table = pd.DataFrame(rows)
    table["gain"] = [_gain(table, row) for _, row in table.iterrows()]
    gaps = [_of(table, row, UPPER_BOUND) - _of(table, row, SOURCE_ONLY) for _, row in table.iterrows()]
    table["recovered"] = [gain / gap if gap >= _GAP else np.nan for gain, gap in zip(table["gain"], gaps, strict=True)]
    table["kept"] = [
        float(row["source_dice"]) - _of(table, row, SOURCE_ONLY, "source_dice") for _, row in table.iterrows()
    ]
    compared = table[table["method"] != UPPER_BOUND].copy()
    compared["rank"] = compared.groupby(["task", "seed"])["target_dice"].rank(ascending=False)
    lines: list[dict[str, Any]] = []
    for method, group in compared.groupby("method", sort=False):
        known = group.dropna(subset="gain")
        if not len(known):
            continue
        least: dict[Any, Any] = min(known.to_dict("records"), key=lambda it: float(it["gain"]))
        recovered = group["recovered"].dropna()
        lines.append(
            {
                "method": method,
                "tasks": group["task"].nunique(),
                "runs": len(group),
                "rank": f"{group['rank'].mean():.1f}",
                "gain": f"{known['gain'].mean():+.3f}",
                "worst": f"{least['gain']:+.3f} ({least['task']}, seed {least['seed']})",
                "harmed": int((known["gain"] < -_HARM).sum()),
                "recovered": f"{100 * recovered.mean():.0f} %" if len(recovered) else "–",
                "source": f"{known['kept'].min():+.3f}",
            }
        )
    lines.sort(key=lambda line: float(line["rank"]))
    return pd.DataFrame(lines)


def draw(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Target Dice of every method, a panel for each task, a dot for each seed."""
    mpl.use("Agg")
    from matplotlib import pyplot

    table = pd.DataFrame(rows)
    tasks = list(dict.fromkeys(table["task"]))
    methods = list(dict.fromkeys(table["method"]))
    figure, axes = pyplot.subplots(1, len(tasks), figsize=(4.2 * len(tasks), 0.35 * len(methods) + 1.4), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        part = table[table["task"] == task]
        for place, method in enumerate(methods):
            values = part.loc[part["method"] == method, "target_dice"]
            axis.barh(place, values.mean(), color="#9bb8d3", height=0.7)
            axis.plot(values, np.full(len(values), place), "o", color="#1f3b57", markersize=3)
        for name, style in ((SOURCE_ONLY, ":"), (UPPER_BOUND, "--")):
            values = part.loc[part["method"] == name, "target_dice"]
            if len(values):
                axis.axvline(values.mean(), color="#1f3b57", linestyle=style, linewidth=1)
        axis.set(title=task, xlabel="Dice on the target", xlim=(0, 1), yticks=range(len(methods)), yticklabels=methods)
        axis.invert_yaxis()
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def _gain(table: pd.DataFrame, row: Any) -> float:
    return float(row["target_dice"] - _of(table, row, SOURCE_ONLY))


def _recovered(table: pd.DataFrame, row: Any) -> float:
    low, high = _of(table, row, SOURCE_ONLY), _of(table, row, UPPER_BOUND)
    return float((row["target_dice"] - low) / (high - low)) if high > low else float("nan")


def _of(table: pd.DataFrame, row: Any, method: str, column: str = "target_dice") -> float:
    same = table[(table["task"] == row["task"]) & (table["method"] == method)]
    seed = same[same["seed"] == row["seed"]]
    chosen = seed if len(seed) else same
    return float(chosen[column].mean()) if len(chosen) else float("nan")


def _spread(values: pd.Series, percent: bool = False) -> str:
    known = values[np.isfinite(values)]
    if not len(known):
        return "–"
    scale, digits = (100, 0) if percent else (1, 3)
    deviation = f" ± {scale * known.std(ddof=1):.{digits}f}" if len(known) > 1 else ""
    return f"{scale * known.mean():.{digits}f}{deviation}{' %' if percent else ''}"
