"""Candidate beside production: what the gate says, what one score alone would say, and what is true."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.adaptation.methods import SOURCE_ONLY
from benchmarks.evidence.scores import SCORES
from microseg.config.params import GateSettings
from microseg.registry.gate import Evidence, decide

__all__ = ["BETTER", "TOGETHER", "WORSE", "Pair", "Rate", "leave_one_out", "make_pairs", "rates", "signed_score"]

WORSE, BETTER = -0.02, 0.05
"""Gains of true Dice below which a candidate is truly worse, and above which truly better."""
TOGETHER = "all together"

_Z = 1.959964  # of 95 %
_RIDGE = 1e-2


@dataclass(frozen=True)
class Pair:
    """A candidate and a production network of one task and seed.

    Attributes:
        task: its name.
        kept: whether the candidate is one that an adaptation gave, not one made to be bad.
        first: whether production is ``source_only``.
        gain: of true Dice on the target, −1..1.
        gains: of each score, more is better; −inf where the candidate's is unknown.
        refused_by: the gate's rules that refuse the candidate; none where it accepts.
    """

    task: str
    kept: bool
    first: bool
    gain: float
    gains: Mapping[str, float]
    refused_by: tuple[str, ...]


@dataclass(frozen=True)
class Rate:
    """A count out of so many.

    Attributes:
        count: of those.
        of: all.
    """

    count: int
    of: int

    @property
    def share(self) -> float:
        """0..1; nan where there are none."""
        return self.count / self.of if self.of else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval, as if all were independent; 0 to 1 where there are none."""
        if not self.of:
            return 0.0, 1.0
        share, square = self.share, _Z**2 / self.of
        middle = share + square / 2
        width = _Z * math.sqrt(share * (1 - share) / self.of + square / (4 * self.of))
        low, high = (middle - width) / (1 + square), (middle + width) / (1 + square)
        return max(0.0, low), min(1.0, high)  # but for rounding they are

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.count}/{self.of}: {self.share:.0%} ({low:.0%} to {high:.0%})" if self.of else "–"


def signed_score(row: Mapping[str, Any], score: str) -> float:
    """A row's score, turned so that more should be better; −inf where it is unknown."""
    value = SCORES[score] * float(row["label_free"].get(score, row.get(score, math.nan)))
    return value if math.isfinite(value) else -math.inf


def make_pairs(rows: Sequence[Mapping[str, Any]], policy: GateSettings) -> list[Pair]:
    """Every network as a candidate for every other of its task and seed."""
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
        not candidate["made"],
        production["network"] == SOURCE_ONLY,
        candidate["target_dice"] - production["target_dice"],
        {score: _gain(signed_score(candidate, score), signed_score(production, score)) for score in SCORES},
        tuple(dict.fromkeys(it.rule.partition("/")[0] for it in decision.rules if not it.passed)),
    )


def rates(pairs: Sequence[Pair], accepted: Sequence[bool]) -> tuple[Rate, Rate]:
    """How many of the truly worse and how many of the truly better candidates were accepted."""
    worse = [said for pair, said in zip(pairs, accepted, strict=True) if pair.gain < WORSE]
    better = [said for pair, said in zip(pairs, accepted, strict=True) if pair.gain > BETTER]
    return Rate(sum(worse), len(worse)), Rate(sum(better), len(better))


def leave_one_out(pairs: Sequence[Pair], score: str) -> tuple[list[Pair], list[bool]]:
    """What a score alone would accept, each task judged by the threshold that is best on the others.

    Args:
        pairs: of several tasks.
        score: one of `SCORES`, or `TOGETHER`: a linear regression of the true gain on the gains of all scores, fitted
            on the other tasks as well.

    Returns:
        The pairs that could be judged, and whether each is accepted; none where there are no other tasks.
    """
    judged: list[Pair] = []
    verdicts: list[bool] = []
    for task in dict.fromkeys(pair.task for pair in pairs):
        here = [pair for pair in pairs if pair.task == task]
        others = [pair for pair in pairs if pair.task != task]
        if not any(rate.of for rate in rates(others, [False] * len(others))):
            continue
        if score == TOGETHER:
            known, asked = _regressed(others, here)
        else:
            known, asked = ([pair.gains[score] for pair in part] for part in (others, here))
        threshold = _best_threshold(others, known)
        judged += here
        verdicts += [value >= threshold for value in asked]
    return judged, verdicts


def _best_threshold(pairs: Sequence[Pair], values: Sequence[float]) -> float:
    """The one with the best mean of both shares of right verdicts; of equal ones the highest, which accepts least."""
    finite = np.unique([value for value in values if math.isfinite(value)])
    cuts = [*finite[:1], *((finite[1:] + finite[:-1]) / 2), math.inf]

    def right(cut: float) -> float:
        worse, better = rates(pairs, [value >= cut for value in values])
        shares = [1 - worse.share, better.share]
        return float(np.nanmean(shares))

    return float(max(cuts, key=lambda cut: (right(cut), cut)))


def _regressed(others: Sequence[Pair], here: Sequence[Pair]) -> tuple[list[float], list[float]]:
    """The gain foretold by all scores, on the tasks that it was fitted on and on the one left out."""
    x, wanted = _table(others), np.array([pair.gain for pair in others])
    low, high = x.min(0), x.max(0)  # so that no gain is read beyond what the fit has seen
    mean, spread = x.mean(0), x.std(0) + 1e-9
    scaled = (x - mean) / spread  # (N, D)
    gram = scaled.T @ scaled + _RIDGE * len(x) * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, scaled.T @ (wanted - wanted.mean()))  # (D,)
    asked = (np.clip(_table(here), low, high) - mean) / spread
    return list(scaled @ weights), list(asked @ weights)


def _table(pairs: Sequence[Pair]) -> npt.NDArray[np.float64]:
    """Gains of all scores, unknown ones as the loss of all. (N, D)."""
    return np.clip([[pair.gains[score] for score in SCORES] for pair in pairs], -1.0, 1.0)


def _evidence(row: Mapping[str, Any]) -> Evidence:
    return Evidence(source_dice={"source": row["source_dice"]}, label_free=row["label_free"])


def _gain(new: float, old: float) -> float:
    return -math.inf if new == -math.inf else new - old


def _place(row: Mapping[str, Any]) -> tuple[str, int]:
    return row["task"], row["seed"]
