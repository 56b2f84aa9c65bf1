import json
import math
from pathlib import Path

import pytest

from benchmarks.adaptation.__main__ import main
from benchmarks.adaptation.summary import rank, summarize


def row(method: str, seed: int, target: float, task: str = "t", source: float = 0.9) -> dict[str, object]:
    return {
        "task": task, "method": method, "seed": seed, "source_dice": source, "target_dice": target, "minutes": 5.0
    }  # fmt: skip


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


ROWS = [
    row("source_only", 0, 0.5), row("better", 0, 0.7), row("worse", 0, 0.4), row("upper_bound", 0, 0.9),
    row("source_only", 0, 0.80, "u"), row("better", 0, 0.84, "u", source=0.85), row("worse", 0, 0.84, "u"),
    row("upper_bound", 0, 0.82, "u"),
]  # fmt: skip


def test_ranks_and_worst_case_by_hand() -> None:
    table = rank(ROWS).set_index("method")
    assert list(table.index) == ["better", "worse", "source_only"]
    assert list(table["rank"]) == ["1.2", "2.2", "2.5"]  # 1 and 1.5; 3 and 1.5; 2 and 3
    assert table.loc["better", "gain"] == "+0.120"
    assert table.loc["worse", "worst"] == "-0.100 (t, seed 0)"
    assert list(table["harmed"]) == [0, 1, 0]
    assert table.loc["better", "recovered"] == "50 %"  # the gap of u is too small
    assert table.loc["better", "source"] == "-0.050"


def test_rank_without_source_only() -> None:
    assert rank([row("default", 0, 0.5)]).empty


def test_tables_from_results_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No task is opened and nothing is trained; results of several folders are joined."""
    for name, rows in (("one", ROWS[:4]), ("other", ROWS[4:])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(rows))
    main(["--out", str(tmp_path / "one"), "--report", str(tmp_path / "other")])
    written = (tmp_path / "one" / "table.md").read_text()
    assert "| worse | 2 | 2 | 2.2 | -0.030 | -0.100 (t, seed 0) | 1 | -25 % | +0.000 |" in written
    assert (tmp_path / "one" / "figure.png").exists()
    assert "over all tasks" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="expected results, found none"):
        main(["--out", str(tmp_path / "nothing"), "--report"])
