import numpy as np
import pytest

from benchmarks.evidence.answers import answer_table, gate_answers, regressed_answers
from benchmarks.evidence.pairs import Pair
from microseg.registry.decision import ACCEPTED, NEEDS_REVIEW, REFUSED


def pair(task: str, gain: float, score: float) -> Pair:
    return Pair(task, False, True, gain, {"reverse_validation": score, "entropy": 0.0}, ())


def test_rates_by_hand() -> None:
    pairs = [pair("a", gain, 0) for gain in (-0.3, -0.05, -0.01, 0.02, 0.1, 0.2)]
    assert gate_answers(pairs) == (pairs, 6 * [ACCEPTED])
    table = answer_table({"gate": (pairs, [NEEDS_REVIEW, ACCEPTED, ACCEPTED, REFUSED, ACCEPTED, REFUSED])})
    line = table.iloc[0]
    assert line["worse, accepted"].startswith("1/2:")
    assert line["better, accepted"].startswith("1/2:")
    assert line["better, refused"].startswith("1/2:")
    assert line["worse by more than 0.1, accepted"].startswith("0/1:")
    assert line["a person must look"].startswith("1/6:")


def test_a_score_that_follows_the_gain_decides() -> None:
    gains = (-0.3, -0.2, -0.1, 0.1, 0.2, 0.3)
    pairs = [pair(task, gain, gain / 2) for task in "abc" for gain in gains]
    decided, answers = regressed_answers(pairs, ["reverse_validation"])
    assert decided == pairs
    assert answers == [REFUSED, REFUSED, REFUSED, ACCEPTED, ACCEPTED, ACCEPTED] * 3


def test_a_score_without_meaning_is_left_to_a_person() -> None:
    rng = np.random.default_rng(0)
    pairs = [pair(task, gain, rng.normal()) for task in "abc" for gain in rng.uniform(-0.3, 0.3, 60)]
    answers = regressed_answers(pairs, ["reverse_validation"])[1]
    assert answers.count(NEEDS_REVIEW) > 0.6 * len(answers)


@pytest.mark.parametrize("tasks", ["a", "ab"])
def test_no_answer_without_other_tasks(tasks: str) -> None:
    assert regressed_answers([pair(task, 0.1, 0.1) for task in tasks], ["entropy"]) == ([], [])
