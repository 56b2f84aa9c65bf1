"""Three answers to a candidate: accept it, refuse it, or let a person look; and how often they are wrong."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.evidence.pairs import BETTER, WORSE, Pair, Rate, gain_table
from microseg.registry.decision import ACCEPTED, NEEDS_REVIEW, REFUSED, Verdict

__all__ = ["DISASTER", "answer_table", "gate_answers", "regressed_answers"]

DISASTER = -0.1
"""Gain of true Dice below which no candidate may be accepted."""

_RIDGE = 0.1
_MAX_ERRORS = 0.05

Answers = Sequence[Verdict]


def gate_answers(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Verdict]]:
    """The gate's answers, as it is configured."""
    return list(pairs), [pair.verdict for pair in pairs]


def answer_table(answers: Mapping[str, tuple[Sequence[Pair], Answers]]) -> pd.DataFrame:
    """Tabulate answers: by the name of who gave them, the pairs and the answer to each."""
    return pd.DataFrame([{"answers by": name, **_line(*given)} for name, given in answers.items()])


def _line(pairs: Sequence[Pair], answers: Answers) -> dict[str, str]:
    def rate(answer: Verdict, chosen: Callable[[float], bool]) -> str:
        of = [given == answer for pair, given in zip(pairs, answers, strict=True) if chosen(pair.gain)]
        return str(Rate(sum(of), len(of)))

    return {
        "worse, accepted": rate(ACCEPTED, lambda gain: gain < WORSE),
        "better, accepted": rate(ACCEPTED, lambda gain: gain > BETTER),
        "better, refused": rate(REFUSED, lambda gain: gain > BETTER),
        "worse by more than 0.1, accepted": rate(ACCEPTED, lambda gain: gain < DISASTER),
        "a person must look": rate(NEEDS_REVIEW, lambda _: True),
    }


def regressed_answers(pairs: Sequence[Pair], scores: Sequence[str]) -> tuple[list[Pair], list[Verdict]]:
    """Answer by a linear regression of the true gain on the gains of some scores, fitted on the other tasks.

    A candidate is accepted above the lowest predicted gain at which, on the other tasks, at most 5 % of the worse ones
    and none that is worse by more than 0.1 would be accepted; it is refused below the highest at which at most 5 % of
    the better ones would be refused; between, or if both are claimed, a person must look. The predictions on the other
    tasks are made with each of them left out in turn.

    Args:
        pairs: Pairs of several tasks.
        scores: Names of the scores.

    Returns:
        The pairs of the tasks that have at least two others, and the answer to each.
    """
    tasks = list(dict.fromkeys(pair.task for pair in pairs))
    decided: list[Pair] = []
    answers: list[Verdict] = []
    for task in tasks:
        here, others = ([it for it in pairs if (it.task == task) == same] for same in (True, False))
        inner = [other for other in tasks if other != task]
        if len(inner) < 2:
            continue
        held_out: list[Pair] = []
        predicted: list[float] = []
        for left in inner:
            part = [it for it in others if it.task == left]
            held_out += part
            predicted += list(_predict([it for it in others if it.task != left], part, scores))
        low, high = _thresholds(np.array([it.gain for it in held_out]), np.array(predicted))
        decided += here
        answers += [
            ACCEPTED if value >= high and value > low else REFUSED if value <= low and value < high else NEEDS_REVIEW
            for value in _predict(others, here, scores)
        ]
    return decided, answers


def _predict(fitted: Sequence[Pair], here: Sequence[Pair], scores: Sequence[str]) -> npt.NDArray[np.float64]:
    x, other = gain_table(fitted, scores), gain_table(here, scores)
    spread = np.sqrt((x**2).mean(0)) + 1e-9  # (D,); without an offset: no gain of any score is no gain
    weights = 1 / np.array([sum(it.task == pair.task for it in fitted) for pair in fitted])  # each task counts the same
    scaled = x / spread
    wanted = np.clip([pair.gain for pair in fitted], -0.3, 0.3)
    gram = (scaled.T * weights) @ scaled + _RIDGE * weights.sum() * np.eye(x.shape[1])
    return np.asarray(np.clip(other / spread, -3, 3) @ np.linalg.solve(gram, (scaled.T * weights) @ wanted))


def _thresholds(gains: npt.NDArray[np.float64], predicted: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Largest predicted gain that is refused, and smallest that is accepted."""
    values = np.unique(predicted)
    cuts = [-math.inf, *((values[1:] + values[:-1]) / 2), math.inf]
    worse, better = gains < WORSE, gains > BETTER
    high = next(
        cut
        for cut in cuts
        if (predicted[worse] >= cut).sum() <= _MAX_ERRORS * worse.sum()
        and not (predicted[gains < DISASTER] >= cut).any()
    )
    low = max(
        (cut for cut in cuts if (predicted[better] <= cut).sum() <= _MAX_ERRORS * better.sum()),
    )
    return float(low), float(high)
