from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from microseg.errors import DataError
from microseg.evaluation.objects import ObjectOverlap

Labels = npt.NDArray[np.int32]
Pixels = set[tuple[int, ...]]
label_images = hnp.arrays(np.int32, (5, 6), elements=st.sampled_from([0, 0, 1, 2, 7]))


def object_f1(prediction: Labels, reference: Labels) -> float:
    return ObjectOverlap.between(prediction, reference).f1()


def object_dice(prediction: Labels, reference: Labels) -> float:
    return ObjectOverlap.between(prediction, reference).dice()


def aggregated_jaccard(prediction: Labels, reference: Labels) -> float:
    return ObjectOverlap.between(prediction, reference).aggregated_jaccard()


METRICS: tuple[Callable[[Labels, Labels], float], ...] = (object_f1, object_dice, aggregated_jaccard)


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


def test_object_covered_by_half_is_found() -> None:
    reference = np.array([[1, 1, 1, 1, 0, 0]])
    assert object_f1(np.array([[3, 3, 0, 0, 0, 0]]), reference) == 1
    assert object_f1(np.array([[3, 0, 0, 0, 0, 0]]), reference) == 0
    assert object_f1(np.array([[3, 3, 4, 4, 0, 0]]), reference) == pytest.approx(2 / 3)  # found once, not twice


@settings(max_examples=150)
@given(label_images, label_images)
def test_metrics_equal_those_of_sets_of_pixels(prediction: Labels, reference: Labels) -> None:
    ours, theirs = objects(prediction), objects(reference)
    if not ours or not theirs:
        return
    assert object_f1(prediction, reference) == pytest.approx(brute_f1(ours, theirs))
    assert object_dice(prediction, reference) == pytest.approx(brute_dice(ours, theirs))
    assert aggregated_jaccard(prediction, reference) == pytest.approx(brute_jaccard(ours, theirs))


@settings(max_examples=30)
@given(label_images)
def test_metrics_of_equal_images_do_not_depend_on_the_labels(labels: Labels) -> None:
    renumbered = np.where(labels > 0, 100 + labels, 0).astype(np.int32)
    scores = [metric(renumbered, labels) for metric in METRICS]
    assert scores == [1, 1, 1] if labels.any() else all(np.isnan(scores))


def test_metrics_are_zero_if_one_image_is_empty() -> None:
    nothing, something = np.zeros((5, 5), dtype=np.int32), np.eye(5, dtype=np.int32)
    for pair in ((nothing, something), (something, nothing)):
        assert [metric(*pair) for metric in METRICS] == [0, 0, 0]


@pytest.mark.parametrize("metric", METRICS)
def test_rejects_other_size_and_negative_labels(metric: Callable[[Labels, Labels], float]) -> None:
    labels = np.ones((3, 3), dtype=np.int32)
    with pytest.raises(DataError, match="of one size"):
        metric(labels, labels[:2])
    with pytest.raises(DataError, match="got -1"):
        metric(-labels, labels)
