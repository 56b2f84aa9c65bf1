"""Which patients or slides are for training, for validation and for the test."""

from collections import Counter
from collections.abc import Iterable, Mapping
from hashlib import sha256

from microseg.datasets.manifest import Split
from microseg.errors import DataError

__all__ = ["assign_splits"]


def assign_splits(
    groups: Iterable[str],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    existing: Mapping[str, Split] | None = None,
) -> dict[str, Split]:
    """Assign each group to a split by a hash of its name, so that more groups later do not move the ones before.

    The fractions hold on average. Where chance leaves a split empty that should not be (train always, val from two
    groups on, test from three), one group is moved into it.

    Args:
        groups: Names of patients or slides.
        val_fraction: Share of the groups for validation, 0..1.
        test_fraction: Share of the groups for the test, 0..1.
        seed: Another seed gives another assignment.
        existing: Splits settled before, which never change.

    Returns:
        The split of each group, those of ``existing`` included.

    Raises:
        DataError: The fractions are negative, or leave nothing for training.
    """
    if not (val_fraction >= 0 and test_fraction >= 0 and val_fraction + test_fraction < 1):
        raise DataError(
            f"expected val and test fractions of at least 0 that leave something for training, got {val_fraction} and "
            f"{test_fraction}. Lower them."
        )
    splits = dict(existing or {})
    new = sorted(set(groups) - splits.keys(), key=lambda group: (_position(seed, group), group))
    for group in new:
        position = _position(seed, group)
        in_test, in_val = position < test_fraction, position < test_fraction + val_fraction
        splits[group] = "test" if in_test else "val" if in_val else "train"

    needed: list[Split] = ["train"]
    if val_fraction > 0 and len(splits) >= 2:
        needed.append("val")
    if test_fraction > 0 and len(splits) >= 3:
        needed.append("test")
    for split in needed:
        sizes = Counter(splits.values())
        spare = [group for group in new if splits[group] not in needed or sizes[splits[group]] > 1]
        if not sizes[split] and spare:
            moved = max(spare, key=lambda group: (splits[group] not in needed, sizes[splits[group]]))
            splits[moved] = split
    return splits


def _position(seed: int, group: str) -> float:
    """Where in 0..1 a group falls, the same everywhere and always."""
    return int.from_bytes(sha256(f"{seed}:{group}".encode()).digest()[:8]) / 2**64
