"""Counts, intervals and thresholds, by hand."""

import math
from typing import Any

import pytest

from benchmarks.evidence.pairs import ALL_SCORES, Pair, Rate, leave_one_out, make_pairs, rates, signed_score
from benchmarks.evidence.scores import SCORES
from microseg.config.params import GateSettings


def pair(task: str, gain: float, score: float, name: str = "stain_explained_variance") -> Pair:
    return Pair(task, True, True, gain, dict.fromkeys(SCORES, 0.0) | {name: score}, ())


def row(network: str, target: float, *, source: float = 0.9, seed: int = 0, **scores: float) -> dict[str, Any]:
    known = {"stain_explained_variance": 0.3, "foreground_share": 0.2, "expected_foreground_share": 0.2} | scores
    return {
        "task": "t", "seed": seed, "network": network, "degraded": "," in network, "source_dice": source,
        "target_dice": target, "label_free": known,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("count", "of", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (0, 0, 0, 1)]
)
def test_wilsons_interval(count: int, of: int, low: float, high: float) -> None:
    """Values of the tables of Newcombe 1998 and of R's ``binom.wilson``."""
    assert Rate(count, of).interval == pytest.approx((low, high), abs=1e-4)


def test_gains_between_worse_and_better_are_not_counted() -> None:
    pairs = [pair("t", gain, 0) for gain in (-0.3, -0.021, -0.019, 0.0, 0.049, 0.051, 0.4)]
    assert rates(pairs, [True, False, True, True, True, True, False]) == (Rate(1, 2), Rate(1, 2))


def test_pairs_have_the_decision_of_the_gate() -> None:
    better = {"stain_explained_variance": 0.4, "augmentation_consistency": 0.4}
    rows = [
        row("source_only", 0.5, augmentation_consistency=0.3),
        row("good", 0.6, **better),
        row("forgets", 0.6, source=0.8, **better),
        row("noise", 0.1, stain_explained_variance=0.2, augmentation_consistency=0.2),
        row("other seed", 0.9, seed=1),
    ]
    pairs = {(it.gain > 0, it.refused_by): it for it in make_pairs(rows, GateSettings()) if it.first}
    assert {refused for _, refused in pairs} == {(), ("source_dice",), ("label_free",)}
    accepted = pairs[True, ()]
    assert accepted.gain == pytest.approx(0.1)
    assert accepted.gains["stain_explained_variance"] == pytest.approx(0.1)
    assert len(make_pairs(rows, GateSettings())) == 4 * 3  # the other seed has no pair


def test_scores_have_the_sign_for_which_higher_is_better() -> None:
    rows = [row("source_only", 0.5, entropy=0.2), row("candidate", 0.6, entropy=0.5)]
    (first,) = (it for it in make_pairs(rows, GateSettings()) if it.first)
    assert first.gains["entropy"] == pytest.approx(-0.3)
    assert first.gains["augmentation_consistency"] == -math.inf  # unknown is never a gain
    assert signed_score(rows[0], "augmentation_consistency") == -math.inf


@pytest.mark.parametrize("score", ["stain_explained_variance", ALL_SCORES])
def test_correlated_score_decides_correctly_on_the_task_left_out(score: str) -> None:
    values = (-0.4, -0.1, 0.1, 0.4)
    pairs = [pair(task, value, value / 2) for task in ("a", "b") for value in values]
    decided, decisions = leave_one_out(pairs, score)
    assert [it.gain for it in decided] == [*values, *values]
    assert decisions == [False, False, True, True] * 2


def test_threshold_is_selected_on_the_other_task() -> None:
    """On ``b`` the score is shifted by one: the threshold of ``a`` accepts all there, that of ``b`` nothing on a."""
    pairs = [pair(task, value, value + shift) for task, shift in (("a", 0), ("b", 1)) for value in (-0.3, 0.3)]
    assert leave_one_out(pairs, "stain_explained_variance")[1] == [False, False, True, True]


def test_single_task_has_no_threshold() -> None:
    assert leave_one_out([pair("a", 0.3, 0.3)], "stain_explained_variance") == ([], [])


def test_unknown_score_accepts_nothing() -> None:
    pairs = [pair(task, value, -math.inf) for task in ("a", "b") for value in (-0.3, 0.3)]
    assert leave_one_out(pairs, "stain_explained_variance")[1] == [False] * 4
