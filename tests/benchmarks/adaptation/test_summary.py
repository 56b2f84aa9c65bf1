import math

import pytest

from benchmarks.adaptation.summary import summarize


def row(method: str, seed: int, target: float) -> dict[str, object]:
    return {"task": "t", "method": method, "seed": seed, "source_dice": 0.9, "target_dice": target, "minutes": 5.0}


def test_recovered_fraction_by_hand() -> None:
    rows = [
        row("source_only", 0, 0.5), row("source_only", 1, 0.6), row("upper_bound", 0, 0.9), row("upper_bound", 1, 0.8),
        row("default", 0, 0.8), row("default", 1, 0.65),
    ]  # fmt: skip
    table = summarize(rows).set_index("method")
    assert table.loc["default", "recovered"] == "50 ± 35 %"  # of 0.75 and 0.25
    assert table.loc["default", "worst"] == "+0.050"
    assert table.loc["default", "target"] == "0.725 ± 0.106"
    assert table.loc["upper_bound", "recovered"] == "100 ± 0 %"


def test_seed_without_upper_bound_uses_the_mean_of_the_others() -> None:
    rows = [row("source_only", 0, 0.5), row("source_only", 1, 0.5), row("upper_bound", 0, 1.0), row("default", 1, 0.75)]
    assert summarize(rows).set_index("method").loc["default", "recovered"] == "50 %"


def test_no_recovered_fraction_without_a_gap() -> None:
    rows = [row("source_only", 0, 0.5), row("upper_bound", 0, 0.4), row("default", 0, 0.6)]
    assert summarize(rows).set_index("method").loc["default", "recovered"] == "–"
    assert not math.isnan(float(summarize(rows).set_index("method").loc["default", "worst"]))


@pytest.mark.parametrize("method", ["source_only", "default"])
def test_table_without_upper_bound(method: str) -> None:
    assert len(summarize([row(method, 0, 0.5)])) == 1
