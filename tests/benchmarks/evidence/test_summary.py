from pathlib import Path
from typing import Any

import pytest

from benchmarks.evidence.pairs import make_pairs
from benchmarks.evidence.summary import draw, gate_table, rank_correlation, rank_table, rule_table, score_table
from microseg.config.params import GateSettings


def row(task: str, network: str, target: float, **scores: float) -> dict[str, Any]:
    known = {"stain_explained_variance": target, "foreground_share": 0.2, "expected_foreground_share": 0.2} | scores
    return {
        "task": task, "seed": 0, "network": network, "degraded": "," in network, "source_dice": 0.9,
        "target_dice": target, "label_free": known,
    }  # fmt: skip


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Both criteria rank as true Dice does; entropy does on ``a``, and in reverse order on ``b``."""
    dice = {"source_only": 0.5, "good": 0.8, "x, bad": 0.2, "x, worse": 0.1}
    return [
        row(task, network, target, entropy=sign * target, augmentation_consistency=target)
        for task, sign in (("a", -1), ("b", 1))
        for network, target in dice.items()
    ]


def test_rank_correlation_by_hand() -> None:
    """Ranks 1 2 3 4 and 2 1 4 3: 1 − 6·4 / (4·15)."""
    rows = [
        row("a", "n", target, stain_explained_variance=s)
        for target, s in ((0.1, 0.2), (0.2, 0.1), (0.3, 0.4), (0.4, 0.3))
    ]
    assert rank_correlation(rows, "stain_explained_variance") == pytest.approx(0.6)


def test_constant_and_unknown_scores_have_no_rank(rows: list[dict[str, Any]]) -> None:
    table = rank_table(rows).set_index("score")
    assert table.loc["stain-explained variance (higher is better)", ["a", "b", "mean"]].tolist() == [
        "+1.00",
        "+1.00",
        "+1.00",
    ]
    assert table.loc["prediction entropy (lower is better)", ["a", "b", "mean"]].tolist() == ["+1.00", "-1.00", "+0.00"]
    assert table.loc["reverse validation on the source labs (AUC) (higher is better)", "mean"] == "–"
    assert table.loc["stain-explained variance (higher is better)", "mean, adaptations only"] == "–"  # two are too few


def test_tables_and_figure(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    pairs = make_pairs(rows, GateSettings())
    gate = gate_table(pairs).set_index("answers by")
    assert gate.loc["gate, against source_only", "worse, accepted"].startswith("0/4: 0% (0% to ")
    assert gate.loc["gate, against source_only", "better, accepted"].startswith("2/2: 100%")
    assert gate.loc["gate, the same, adaptations only", "worse, accepted"] == "–"
    rules = rule_table(pairs).set_index("rule")
    assert rules.loc["label free", "worse, stopped"].startswith("12/12")
    first = [pair for pair in pairs if pair.first]
    scores = score_table(first).set_index("score")
    assert scores.loc["stain-explained variance", "balanced accuracy"] == "100%"
    draw(rows, pairs, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000
