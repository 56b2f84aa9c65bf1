from typing import Any

from benchmarks.evidence.choice import choice_table, choose


def row(task: str, network: str, target: float, consistency: float, source: float = 0.9) -> dict[str, Any]:
    return {
        "task": task, "seed": 0, "network": network, "degraded": False, "source_dice": source,
        "target_dice": target, "label_free": {"augmentation_consistency": consistency, "entropy": 1 - consistency},
    }  # fmt: skip


ROWS = [
    row("a", "source_only", 0.5, 0.6),
    row("a", "default", 0.8, 0.9),
    row("a", "default, 0.5 of the way", 0.7, 0.8),
    row("b", "source_only", 0.7, 0.8),
    row("b", "default", 0.6, 0.9, source=0.7),
    row("b", "default, 0.5 of the way", 0.72, 0.7, source=0.85),
]


def test_network_of_the_highest_score_is_chosen_unless_it_lost_on_the_source_lab() -> None:
    assert choose(ROWS[:3], "augmentation_consistency", 0.02)["network"] == "default"
    assert choose(ROWS[3:], "augmentation_consistency", 0.02)["network"] == "source_only"
    assert choose(ROWS[3:], "augmentation_consistency", 0.5)["network"] == "default"


def test_lower_entropy_is_better() -> None:
    assert choose(ROWS[:3], "entropy", 0.02)["network"] == "default"


def test_unknown_score_chooses_the_first() -> None:
    assert choose(ROWS[:3], "forward_validation", 0.02)["network"] == "source_only"


def test_table_by_hand() -> None:
    table = choice_table(ROWS, 0.02).set_index("choice")
    assert table.loc["always default"].tolist() == ["0.060", "0.120", "+0.100", "-0.100", "1/2"]
    assert table.loc["highest augmentation consistency"].tolist() == ["0.010", "0.020", "+0.150", "+0.000", "1/2"]
