from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from microseg.errors import DataError
from microseg.evaluation.objects import aggregated_jaccard, label_objects, object_dice, object_f1, object_hausdorff

Labels = npt.NDArray[np.int32]
Pixels = set[tuple[int, ...]]
label_images = hnp.arrays(np.int32, (5, 6), elements=st.sampled_from([0, 0, 1, 2, 7]))
MEASURES: tuple[Callable[[Labels, Labels], float], ...] = (
    object_f1,
    object_dice,
    object_hausdorff,
    aggregated_jaccard,
)


def objects(labels: Labels) -> list[Pixels]:
    return [{index for index in np.ndindex(labels.shape) if labels[index] == k} for k in np.unique(labels) if k != 0]


def partner(one: Pixels, others: list[Pixels]) -> Pixels | None:
    best = max(others, key=lambda other: len(one & other), default=None)
    return best if best is not None and one & best else None


def brute_dice(ours: list[Pixels], theirs: list[Pixels]) -> float:
    def directed(ones: list[Pixels], others: list[Pixels]) -> float:
        total = sum(len(one) for one in ones)
        score = 0.0
        for one in ones:
            other = partner(one, others)
            if other is not None:
                score += len(one) / total * 2 * len(one & other) / (len(one) + len(other))
        return score

    return (directed(ours, theirs) + directed(theirs, ours)) / 2


def brute_hausdorff(ours: list[Pixels], theirs: list[Pixels]) -> float:
    def between(one: Pixels, other: Pixels) -> float:
        there = max(min(np.hypot(a - c, b - d) for c, d in other) for a, b in one)
        back = max(min(np.hypot(a - c, b - d) for c, d in one) for a, b in other)
        return float(max(there, back))

    def directed(ones: list[Pixels], others: list[Pixels]) -> float:
        total = sum(len(one) for one in ones)
        distance = 0.0
        for one in ones:
            other = partner(one, others)
            nearest = min(between(one, candidate) for candidate in others) if other is None else between(one, other)
            distance += len(one) / total * nearest
        return distance

    return (directed(ours, theirs) + directed(theirs, ours)) / 2


def brute_f1(ours: list[Pixels], theirs: list[Pixels]) -> float:
    found: list[Pixels] = []
    wrong = 0
    for one in ours:
        other = partner(one, theirs)
        if other is not None and len(one & other) >= len(other) / 2 and other not in found:
            found.append(other)
        else:
            wrong += 1
    missed = len(theirs) - len(found)
    return 2 * len(found) / (2 * len(found) + wrong + missed)


def brute_jaccard(ours: list[Pixels], theirs: list[Pixels]) -> float:
    intersection, union = 0, 0
    used: list[Pixels] = []
    for other in theirs:
        best = max(ours, key=lambda one: len(one & other) / len(one | other), default=None)
        if best is None or not best & other:
            union += len(other)
            continue
        intersection += len(best & other)
        union += len(best | other)
        used.append(best)
    return intersection / (union + sum(len(one) for one in ours if one not in used))


def test_two_glands_by_hand() -> None:
    reference = np.zeros((10, 20), dtype=np.int32)
    reference[0:4, 0:5] = 1  # 20 px
    reference[6:10, 0:5] = 2  # 20 px
    prediction = np.zeros_like(reference)
    prediction[0:4, 1:5] = 5  # 16 px, all on gland 1
    prediction[6:8, 12:17] = 9  # 10 px, on nothing
    # found: gland 1 (16 of 20 px); wrong: 1; missed: 1
    assert object_f1(prediction, reference) == pytest.approx(0.5)
    # predicted: 16/26 · 32/36 + 10/26 · 0; reference: 20/40 · 32/36 + 20/40 · 0
    assert object_dice(prediction, reference) == pytest.approx((16 / 26 + 20 / 40) * 32 / 36 / 2)
    # AJI: 16 / (20 + 20 + 10)
    assert aggregated_jaccard(prediction, reference) == pytest.approx(16 / 50)
    # 5 ↔ 1: 1 px. 9 → nearest is 2: 12 px along the rows, √148 from (9, 0) to (7, 12)
    # 2 → nearest is 5 (from (9, 0) to (3, 1): √37) rather than 9 (√148)
    expected = (16 / 26 * 1 + 10 / 26 * np.sqrt(148) + 0.5 * 1 + 0.5 * np.sqrt(37)) / 2
    assert object_hausdorff(prediction, reference) == pytest.approx(expected)
    assert object_hausdorff(prediction, reference, mpp=0.25) == pytest.approx(expected / 4)


def test_exactly_half_is_found() -> None:
    reference = np.array([[1, 1, 1, 1, 0, 0]])
    assert object_f1(np.array([[3, 3, 0, 0, 0, 0]]), reference) == 1
    assert object_f1(np.array([[3, 0, 0, 0, 0, 0]]), reference) == 0
    assert object_f1(np.array([[3, 3, 4, 4, 0, 0]]), reference) == pytest.approx(2 / 3)  # found once, not twice


@settings(deadline=None, max_examples=150)
@given(label_images, label_images)
def test_equals_sets_of_pixels(prediction: Labels, reference: Labels) -> None:
    ours, theirs = objects(prediction), objects(reference)
    if not ours or not theirs:
        return
    assert object_f1(prediction, reference) == pytest.approx(brute_f1(ours, theirs))
    assert object_dice(prediction, reference) == pytest.approx(brute_dice(ours, theirs))
    assert object_hausdorff(prediction, reference) == pytest.approx(brute_hausdorff(ours, theirs))
    assert aggregated_jaccard(prediction, reference) == pytest.approx(brute_jaccard(ours, theirs))


@settings(deadline=None, max_examples=30)
@given(label_images)
def test_perfect_on_itself_whatever_the_numbers(labels: Labels) -> None:
    renumbered = np.where(labels > 0, 100 + labels, 0).astype(np.int32)
    scores = [measure(renumbered, labels) for measure in MEASURES]
    assert scores == [1, 1, 0, 1] if labels.any() else all(np.isnan(scores))


def test_one_side_empty() -> None:
    nothing, something = np.zeros((5, 5), dtype=np.int32), np.eye(5, dtype=np.int32)
    for pair in ((nothing, something), (something, nothing)):
        assert [measure(*pair) for measure in MEASURES] == [0, 0, np.inf, 0]


def test_objects_touch_at_corners() -> None:
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 1]], dtype=np.bool_)
    assert label_objects(mask).tolist() == [[1, 0, 0, 2], [0, 1, 0, 2]]


@pytest.mark.parametrize("measure", MEASURES)
def test_what_cannot_be_compared_is_refused(measure: Callable[[Labels, Labels], float]) -> None:
    labels = np.ones((3, 3), dtype=np.int32)
    with pytest.raises(DataError, match="of one size"):
        measure(labels, labels[:2])
    with pytest.raises(DataError, match="got -1"):
        measure(-labels, labels)
