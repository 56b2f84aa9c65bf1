import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microseg.datasets.dataset import assign_splits
from microseg.errors import DataError

groups = st.sets(st.text(max_size=8), max_size=30)
fractions = st.floats(0, 0.49)


def by_hash(names, val, test, seed):
    """What the hash alone says, written anew."""
    positions = {name: int(hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()[:16], 16) / 16**16 for name in names}
    return {name: "test" if x < test else "val" if x < test + val else "train" for name, x in positions.items()}


@given(groups, fractions, fractions, st.integers())
def test_every_split_is_filled_where_it_can_be(names, val, test, seed):
    splits = assign_splits(names, val_fraction=val, test_fraction=test, seed=seed)
    found = set(splits.values())
    assert splits.keys() == names
    assert ("train" in found) == (len(names) >= 1)
    if val > 0 and len(names) >= 2:
        assert "val" in found
    if test > 0 and len(names) >= 3:
        assert "test" in found
    if val == 0:
        assert "val" not in found
    if test == 0:
        assert "test" not in found


@given(groups, st.integers(), st.randoms())
def test_order_and_repetition_do_not_matter(names, seed, random):
    shuffled = [*names, *names]
    random.shuffle(shuffled)
    options = {"val_fraction": 0.2, "test_fraction": 0.2, "seed": seed}
    assert assign_splits(shuffled, **options) == assign_splits(sorted(names), **options)


@given(groups, groups, st.integers())
def test_settled_splits_never_move(before, more, seed):
    options = {"val_fraction": 0.2, "test_fraction": 0.2, "seed": seed}
    first = assign_splits(before, **options)
    later = assign_splits(before | more, **options, existing=first)
    assert first.items() <= later.items()
    assert later.keys() == before | more


@given(st.sets(st.integers(0, 10**6).map(str), min_size=30, max_size=60), st.integers(0, 5))
def test_more_groups_move_none_before_even_if_forgotten(names, seed):
    options = {"val_fraction": 0.3, "test_fraction": 0.3, "seed": seed}
    first = assign_splits(names, **options)
    later = assign_splits(names | {"new 1", "new 2", "new 3"}, **options)
    moved = [name for name in names if first[name] != later[name]]
    assert len(moved) <= 2  # at most one for each split that chance had left empty


def test_where_no_split_is_empty_the_hash_decides_alone():
    names = {f"patient {i}" for i in range(40)}
    splits = assign_splits(names, val_fraction=0.25, test_fraction=0.25, seed=3)
    assert splits == by_hash(names, 0.25, 0.25, 3)


def test_fractions_hold_on_average():
    counts = Counter(assign_splits(map(str, range(4000)), val_fraction=0.2, test_fraction=0.1, seed=0).values())
    # binomial standard deviations are 25 and 19; five of them
    assert counts["val"] == pytest.approx(800, abs=125)
    assert counts["test"] == pytest.approx(400, abs=95)


def test_seed_changes_the_assignment():
    names = [str(i) for i in range(50)]
    first, second = (assign_splits(names, val_fraction=0.3, test_fraction=0.3, seed=seed) for seed in (0, 1))
    assert first != second


def test_assignment_is_the_same_on_every_machine():
    splits = assign_splits(["a", "b", "c", "d"], val_fraction=0.25, test_fraction=0.25, seed=0)
    # the hashes put a at 0.617, b at 0.876, c at 0.742, d at 0.491: none below 0.25, so the test gets the nearest, a
    assert splits == {"a": "test", "b": "train", "c": "train", "d": "val"}


def test_the_first_new_group_fills_what_the_settled_ones_leave_empty():
    settled = {"a": "train", "b": "train"}
    splits = assign_splits(["c"], val_fraction=0.01, test_fraction=0, seed=0, existing=settled)
    assert splits == {"a": "train", "b": "train", "c": "val"}


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.2), (0.5, 0.5), (0.9, 0.2), (float("nan"), 0.1)])
def test_impossible_fractions(val, test):
    with pytest.raises(DataError, match="Lower them"):
        assign_splits(["a"], val_fraction=val, test_fraction=test, seed=0)
