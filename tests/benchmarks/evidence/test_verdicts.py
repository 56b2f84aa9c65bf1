"""Counts, intervals and thresholds, by hand."""

import math
from typing import Any

import pytest

from benchmarks.evidence.scores import SCORES
from benchmarks.evidence.verdicts import TOGETHER, Pair, Rate, leave_one_out, make_pairs, rates, signed_score
from microseg.config.params import GateSettings


def pair(task: str, gain: float, score: float, name: str = "stain_explained_variance") -> Pair:
    return Pair(task, True, True, gain, dict.fromkeys(SCORES, 0.0) | {name: score}, ())


def row(network: str, target: float, *, source: float = 0.9, seed: int = 0, **scores: float) -> dict[str, Any]:
    known = {"stain_explained_variance": 0.3, "foreground_share": 0.2, "expected_foreground_share": 0.2} | scores
    return {
        "task": "t", "seed": seed, "network": network, "made": "," in network, "source_dice": source,
        "target_dice": target, "label_free": known,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("count", "of", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (0, 0, 0, 1)]
)
def test_wilsons_interval(count: int, of: int, low: float, high: float) -> None:
    """Values of the tables of Newcombe 1998 and of R's ``binom.wilson``."""
    assert Rate(count, of).interval == pytest.approx((low, high), abs=1e-4)


def test_what_lies_between_worse_and_better_counts_for_neither() -> None:
    pairs = [pair("t", gain, 0) for gain in (-0.3, -0.021, -0.019, 0.0, 0.049, 0.051, 0.4)]
    assert rates(pairs, [True, False, True, True, True, True, False]) == (Rate(1, 2), Rate(1, 2))


def test_the_gate_is_the_real_one() -> None:
    rows = [
        row("source_only", 0.5, cohen_kappa=0.3), row("good", 0.6, stain_explained_variance=0.4, cohen_kappa=0.4),
        row("forgets", 0.6, source=0.8, stain_explained_variance=0.4, cohen_kappa=0.4),
        row("noise", 0.1, stain_explained_variance=0.2, cohen_kappa=0.2), row("other seed", 0.9, seed=1),
    ]  # fmt: skip
    pairs = {(it.gain > 0, it.refused_by): it for it in make_pairs(rows, GateSettings()) if it.first}
    assert {refused for _, refused in pairs} == {(), ("source_dice",), ("label_free",)}
    accepted = pairs[True, ()]
    assert accepted.gain == pytest.approx(0.1)
    assert accepted.gains["stain_explained_variance"] == pytest.approx(0.1)
    assert len(make_pairs(rows, GateSettings())) == 4 * 3  # the other seed stands alone


def test_scores_are_turned_so_that_more_is_better() -> None:
    rows = [row("source_only", 0.5, entropy=0.2), row("candidate", 0.6, entropy=0.5)]
    (first,) = (it for it in make_pairs(rows, GateSettings()) if it.first)
    assert first.gains["entropy"] == pytest.approx(-0.3)
    assert first.gains["augmentation_consistency"] == -math.inf  # unknown is never a gain
    assert signed_score(rows[0], "augmentation_consistency") == -math.inf


@pytest.mark.parametrize("score", ["stain_explained_variance", TOGETHER])
def test_a_score_that_knows_is_right_on_the_task_left_out(score: str) -> None:
    values = (-0.4, -0.1, 0.1, 0.4)
    pairs = [pair(task, value, value / 2) for task in ("a", "b") for value in values]
    judged, verdicts = leave_one_out(pairs, score)
    assert [it.gain for it in judged] == [*values, *values]
    assert verdicts == [False, False, True, True] * 2


def test_the_threshold_comes_from_the_other_task() -> None:
    """On ``b`` the score is shifted by one: the threshold of ``a`` accepts all there, that of ``b`` nothing on a."""
    pairs = [pair(task, value, value + shift) for task, shift in (("a", 0), ("b", 1)) for value in (-0.3, 0.3)]
    assert leave_one_out(pairs, "stain_explained_variance")[1] == [False, False, True, True]


def test_one_task_leaves_nothing_to_choose_by() -> None:
    assert leave_one_out([pair("a", 0.3, 0.3)], "stain_explained_variance") == ([], [])


def test_a_score_that_is_unknown_accepts_nothing() -> None:
    pairs = [pair(task, value, -math.inf) for task in ("a", "b") for value in (-0.3, 0.3)]
    assert leave_one_out(pairs, "stain_explained_variance")[1] == [False] * 4
