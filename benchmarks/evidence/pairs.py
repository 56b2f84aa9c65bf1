"""Pairs of a candidate and a production network: the gate's decision, that by single scores, and the true gain."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.adaptation.methods import SOURCE_ONLY
from benchmarks.evidence.scores import SCORES
from microseg.config.params import GateSettings
from microseg.registry.decision import ACCEPTED, MET, Verdict
from microseg.registry.evidence import Evidence
from microseg.registry.gate import decide

__all__ = [
    "ALL_SCORES",
    "BETTER",
    "WORSE",
    "Pair",
    "Rate",
    "gain_table",
    "leave_one_out",
    "make_pairs",
    "rates",
    "signed_score",
]

WORSE, BETTER = -0.02, 0.05
"""Gains of true Dice below which a candidate is worse, and above which it is better."""
ALL_SCORES = "all scores"

_Z = 1.959964  # of 95 %
_RIDGE = 1e-2


@dataclass(frozen=True)
class Pair:
    """A candidate and a production network of one task and seed.

    Args:
        task: Name of the task.
        degraded: Whether the candidate is a degraded network, not the result of an adaptation.
        first: Whether production is ``source_only``.
        gain: Gain of true Dice on the target, −1..1.
        gains: Gain of each score, higher is better; −inf if the candidate's is unknown.
        refused_by: The gate's rules that are not met or unclear; none if it accepts.
        verdict: The gate's.
    """

    task: str
    degraded: bool
    first: bool
    gain: float
    gains: Mapping[str, float]
    refused_by: tuple[str, ...]
    verdict: Verdict = ACCEPTED


@dataclass(frozen=True)
class Rate:
    """A fraction of a count.

    Args:
        count: Numerator.
        of: Denominator.
    """

    count: int
    of: int

    @property
    def share(self) -> float:
        """0..1; NaN for 0 of 0."""
        return self.count / self.of if self.of else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval, assuming independence; 0 to 1 for 0 of 0."""
        if not self.of:
            return 0.0, 1.0
        share, square = self.share, _Z**2 / self.of
        middle = share + square / 2
        width = _Z * math.sqrt(share * (1 - share) / self.of + square / (4 * self.of))
        low, high = (middle - width) / (1 + square), (middle + width) / (1 + square)
        return max(0.0, low), min(1.0, high)  # against rounding

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.count}/{self.of}: {self.share:.0%} ({low:.0%} to {high:.0%})" if self.of else "–"


def signed_score(row: Mapping[str, Any], score: str) -> float:
    """Return a row's score with the sign for which higher is better; −inf if unknown."""
    value = SCORES[score] * float(row["label_free"].get(score, row.get(score, math.nan)))
    return value if math.isfinite(value) else -math.inf


def make_pairs(rows: Sequence[Mapping[str, Any]], policy: GateSettings) -> list[Pair]:
    """Pair every network as a candidate with every other of its task and seed."""
    return [
        _pair(candidate, production, policy)
        for candidate in rows
        for production in rows
        if candidate is not production and _place(candidate) == _place(production)
    ]


def _pair(candidate: Mapping[str, Any], production: Mapping[str, Any], policy: GateSettings) -> Pair:
    decision = decide(_evidence(candidate), _evidence(production), policy)
    return Pair(
        candidate["task"],
        candidate["degraded"],
        production["network"] == SOURCE_ONLY,
        candidate["target_dice"] - production["target_dice"],
        {score: _gain(signed_score(candidate, score), signed_score(production, score)) for score in SCORES},
        tuple(dict.fromkeys(it.rule.partition("/")[0] for it in decision.rules if it.outcome != MET)),
        decision.verdict,
    )


def rates(pairs: Sequence[Pair], accepted: Sequence[bool]) -> tuple[Rate, Rate]:
    """Count the accepted ones of the worse and of the better candidates."""
    worse = [value for pair, value in zip(pairs, accepted, strict=True) if pair.gain < WORSE]
    better = [value for pair, value in zip(pairs, accepted, strict=True) if pair.gain > BETTER]
    return Rate(sum(worse), len(worse)), Rate(sum(better), len(better))


def leave_one_out(pairs: Sequence[Pair], score: str) -> tuple[list[Pair], list[bool]]:
    """Decide by a single score, with the threshold of each task that is best on the other tasks.

    Args:
        pairs: Pairs of several tasks.
        score: One of `SCORES`, or `ALL_SCORES`: a linear regression of the true gain on the gains of all scores, fitted
            on the other tasks.

    Returns:
        The decided pairs, and whether each is accepted; none if there are no other tasks.
    """
    decided: list[Pair] = []
    decisions: list[bool] = []
    for task in dict.fromkeys(pair.task for pair in pairs):
        here = [pair for pair in pairs if pair.task == task]
        others = [pair for pair in pairs if pair.task != task]
        if not any(rate.of for rate in rates(others, [False] * len(others))):
            continue
        if score == ALL_SCORES:
            fitted, values = _regressed(others, here)
        else:
            fitted, values = ([pair.gains[score] for pair in part] for part in (others, here))
        threshold = _best_threshold(others, fitted)
        decided += here
        decisions += [value >= threshold for value in values]
    return decided, decisions


def _best_threshold(pairs: Sequence[Pair], values: Sequence[float]) -> float:
    """The one with the best mean of both shares of right decisions; of equal ones the highest, which accepts least."""
    finite = np.unique([value for value in values if math.isfinite(value)])
    cuts = [*finite[:1], *((finite[1:] + finite[:-1]) / 2), math.inf]

    def right(cut: float) -> float:
        worse, better = rates(pairs, [value >= cut for value in values])
        shares = [1 - worse.share, better.share]
        return float(np.nanmean(shares))

    return float(max(cuts, key=lambda cut: (right(cut), cut)))


def _regressed(others: Sequence[Pair], here: Sequence[Pair]) -> tuple[list[float], list[float]]:
    """The gain predicted by all scores, on the tasks of the fit and on the one left out."""
    x, wanted = gain_table(others, SCORES), np.array([pair.gain for pair in others])
    low, high = x.min(0), x.max(0)  # no extrapolation
    mean, spread = x.mean(0), x.std(0) + 1e-9
    scaled = (x - mean) / spread  # (N, D)
    gram = scaled.T @ scaled + _RIDGE * len(x) * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, scaled.T @ (wanted - wanted.mean()))  # (D,)
    values = (np.clip(gain_table(here, SCORES), low, high) - mean) / spread
    return list(scaled @ weights), list(values @ weights)


def gain_table(pairs: Sequence[Pair], scores: Iterable[str]) -> npt.NDArray[np.float64]:
    """Gains of the scores, −1 for unknown ones, (N, D)."""
    return np.clip([[pair.gains[score] for score in scores] for pair in pairs], -1.0, 1.0)


def _evidence(row: Mapping[str, Any]) -> Evidence:
    return Evidence(source_dice={"source": row["source_dice"]}, label_free=row["label_free"])


def _gain(new: float, old: float) -> float:
    return -math.inf if new == -math.inf else new - old


def _place(row: Mapping[str, Any]) -> tuple[str, int]:
    return row["task"], row["seed"]
