"""Tables and a figure of the results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from scipy.stats import rankdata

from benchmarks.evidence.answers import answer_table, gate_answers, regressed_answers
from benchmarks.evidence.pairs import ALL_SCORES, BETTER, WORSE, Pair, leave_one_out, rates, signed_score
from benchmarks.evidence.scores import SCORES
from microseg.registry.model_card import measurement_name

__all__ = ["draw", "gate_table", "rank_correlation", "rank_table", "rule_table", "score_table"]

_MIN_NETWORKS = 4  # for a rank correlation

Rows = Sequence[Mapping[str, Any]]


def rank_correlation(rows: Rows, score: str) -> float:
    """Return Spearman's rank correlation of a score, negated if lower is better, with true Dice on the target.

    Returns:
        −1..1; NaN for fewer than four networks, or if either is constant.
    """
    if len(rows) < _MIN_NETWORKS:
        return float("nan")
    ranks = rankdata([[signed_score(row, score), row["target_dice"]] for row in rows], axis=0)  # (N, 2)
    if (ranks.std(0) == 0).any():
        return float("nan")
    return float(np.corrcoef(ranks.T)[0, 1])


def rank_table(rows: Rows) -> pd.DataFrame:
    """Tabulate the rank correlation of each score: by task, their mean, and the mean of adapted networks only."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    lines = []
    for score, sign in SCORES.items():
        found = {task: rank_correlation(_of(rows, task), score) for task in tasks}
        adapted = [rank_correlation([row for row in _of(rows, task) if not row["degraded"]], score) for task in tasks]
        lines.append(
            {"score": f"{measurement_name(score)} ({'higher' if sign > 0 else 'lower'} is better)"}
            | {task: _signed(value) for task, value in found.items()}
            | {"mean": _signed(_mean(found.values())), "mean, adaptations only": _signed(_mean(adapted))}
        )
    return pd.DataFrame(lines)


def score_table(pairs: Sequence[Pair]) -> pd.DataFrame:
    """Tabulate the decisions by each single score, with thresholds selected on the other tasks."""
    lines = []
    for score in (*SCORES, ALL_SCORES):
        decided, decisions = leave_one_out(pairs, score)
        worse, better = rates(decided, decisions)
        right = _mean([1 - worse.share, better.share]) if worse.of and better.of else float("nan")
        lines.append(
            {
                "score": measurement_name(score),
                "worse, accepted": str(worse),
                "better, accepted": str(better),
                "balanced accuracy": f"{right:.0%}" if np.isfinite(right) else "–",
            }
        )
    return pd.DataFrame(lines)


def gate_table(pairs: Sequence[Pair]) -> pd.DataFrame:
    """Tabulate the three answers of the gate, and of a regression on all scores fitted on the other tasks.

    Candidates are compared with ``source_only``, of these the adaptations only, and with any network.
    """
    parts = {
        "against source_only": [pair for pair in pairs if pair.first],
        "the same, adaptations only": [pair for pair in pairs if pair.first and not pair.degraded],
        "against any network": list(pairs),
    }
    answers = {f"gate, {name}": gate_answers(part) for name, part in parts.items()}
    answers |= {f"regression, {name}": regressed_answers(part, tuple(SCORES)) for name, part in parts.items()}
    return answer_table(answers)


def rule_table(pairs: Sequence[Pair]) -> pd.DataFrame:
    """Tabulate how many of the worse and of the better candidates each rule of the gate does not accept."""
    rules = sorted({rule for pair in pairs for rule in pair.refused_by})
    lines = []
    for rule in rules:
        worse, better = rates(pairs, [rule in pair.refused_by for pair in pairs])
        lines.append({"rule": rule.replace("_", " "), "worse, stopped": str(worse), "better, stopped": str(better)})
    return pd.DataFrame(lines, columns=["rule", "worse, stopped", "better, stopped"])


def draw(rows: Rows, pairs: Sequence[Pair], file: Path) -> None:
    """Plot the gain of each score over ``source_only`` against that of true Dice, one dot per network."""
    mpl.use("Agg")
    from matplotlib import pyplot

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, axes = pyplot.subplots(
        2, (len(SCORES) + 1) // 2, figsize=(3.2 * ((len(SCORES) + 1) // 2), 6.2), sharey=True
    )
    first = [pair for pair in pairs if pair.first]
    for axis, score in zip(axes.flat, SCORES, strict=False):
        for task in tasks:
            dots = [(it.gains[score], it.gain) for it in first if it.task == task and np.isfinite(it.gains[score])]
            axis.plot(*(zip(*dots, strict=True) if dots else ([], [])), "o", markersize=3, alpha=0.8, label=task)
        for level in (WORSE, BETTER):
            axis.axhline(level, color="#888888", linestyle=":", linewidth=0.8)
        axis.axvline(0, color="#888888", linewidth=0.8)
        mean = _mean(rank_correlation(_of(rows, task), score) for task in tasks)
        axis.set(title=f"{measurement_name(score)}: {_signed(mean)}", xlabel="gain of the score")
    for axis in axes[:, 0]:
        axis.set_ylabel("gain of Dice on the target")
    axes.flat[0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def _of(rows: Rows, task: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["task"] == task]


def _mean(values: Any) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def _signed(value: float) -> str:
    return f"{value:+.2f}" if np.isfinite(value) else "–"
