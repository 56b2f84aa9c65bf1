"""Tables of the documentation are those of the results."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report.__main__ import main
from benchmarks.report.adaptation import adapted, before_after, methods, targets
from benchmarks.report.data_sets import DATA_SETS, data_set_pages, navigation
from benchmarks.report.gpu import gpu_correctness, gpu_speed
from benchmarks.report.objects import object_speed_table, object_table, object_targets
from benchmarks.report.pages import ResultsError, rewritten
from benchmarks.results import provenance


def row(task: str, method: str, seed: int, target: float, source: float = 0.9) -> dict[str, Any]:
    return {"task": task, "method": method, "seed": seed, "source_dice": source, "target_dice": target, "minutes": 1.0}


def result(*rows: dict[str, Any]) -> dict[str, Any]:
    measured = {"command": "python -m benchmarks.adaptation", "date": "2026-01-02", "commit": "abc", "machine": "m"}
    return {"provenance": measured, "rows": list(rows), "file": Path("one.json")}


def test_pages_are_as_the_results_say(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--check"])
    assert capsys.readouterr().out == ""


def test_files_join_into_one_table() -> None:
    first = result(row("a", "source_only", 0, 0.5), row("a", "default", 0, 0.7, 0.88))
    second = result(row("a", "source_only", 1, 0.6), row("a", "default", 1, 0.9))
    bounds = result(row("a", "upper_bound", 0, 0.9))
    lines = before_after([first, second, bounds]).splitlines()
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    # means 0.55 and 0.8; gains 0.2 and 0.3; 0.2 of 0.4 recovered with seed 0, unknown with seed 1
    assert cells == ["a", "0, 1", "0.550 → 0.800", "+0.200", "0.900 → 0.890", "0.900", "50 %"]


def test_what_is_wanted_is_compared_with_what_is_reached() -> None:
    first = result(row("a", "source_only", 0, 0.5), row("a", "default", 0, 0.7, 0.88))
    second = result(row("b", "source_only", 1, 0.6), row("b", "default", 1, 0.9))
    harmed, kept, *unknown = targets([first, second]).splitlines()[2:]
    assert "yes: 0 of 2 do (2 tasks); mean gain +0.250, smallest +0.200 (a, seed 0)" in harmed
    assert "**no**: largest loss 0.020 (a, seed 0)" in kept
    assert unknown == []
    bounds = result(row("a", "upper_bound", 0, 0.9), row("b", "upper_bound", 0, 0.9))
    average, each = targets([first, second, bounds]).splitlines()[4:]
    assert "**no**: 50 % (1 of 2 tasks)" in average  # 0.2 of 0.4 of a; the bound of b is of another seed
    assert "**no** (1 of 2 tasks): a 50 %" in each


def test_an_adaptation_is_compared_with_the_first_model_of_its_own_file() -> None:
    first = result(row("a", "source_only", 0, 0.5), row("a", "mic", 0, 0.6))
    second = result(row("a", "source_only", 0, 0.4), row("a", "default", 0, 0.7))
    assert [it.before for it in adapted([first, second])] == [0.5, 0.4]
    with pytest.raises(ValueError, match="same first model"):
        methods([first, second])


def test_contradicting_results_are_refused() -> None:
    first = result(row("a", "source_only", 0, 0.5), row("a", "default", 0, 0.6))
    second = result(row("a", "source_only", 0, 0.5), row("a", "default", 0, 0.7))
    assert len(adapted([first, first])) == 1
    with pytest.raises(ValueError, match="delete the older one"):
        adapted([first, second])
    with pytest.raises(ValueError, match="no file has it"):
        adapted([result(row("a", "default", 0, 0.6))])


def test_blocks_are_written_with_their_source(tmp_path: Path) -> None:
    (tmp_path / "speed.json").write_text(
        json.dumps(
            {
                "provenance": {"command": "python -m x", "date": "2026-01-02", "commit": "abc", "machine": "two cores"},
                "tables": {"one": {"columns": ["a"], "rows": [["1"]]}},
            }
        )
    )
    text = "# Page\n\n<!-- results: speed one -->\nold\n<!-- end of results -->\n\nmore\n"
    written = rewritten(text, tmp_path / "page.md", tmp_path)
    assert "| a |\n| --- |\n| 1 |\n" in written
    assert "`python -m x`: 2026-01-02; commit abc; two cores ([JSON](speed.json))" in written
    assert "old" not in written
    assert written.endswith("<!-- end of results -->\n\nmore\n")
    assert rewritten(written, tmp_path / "page.md", tmp_path) == written
    with pytest.raises(ResultsError, match="expected a table two"):
        rewritten(text.replace("speed one", "speed two"), tmp_path / "page.md", tmp_path)
    with pytest.raises(ResultsError, match="no such file"):
        rewritten(text.replace("speed one", "none one"), tmp_path / "page.md", tmp_path)
    with pytest.raises(ResultsError, match="end of results"):
        rewritten("<!-- results: speed one -->\n", tmp_path / "page.md", tmp_path)


def test_only_data_sets_with_results_have_a_page(tmp_path: Path) -> None:
    (tmp_path / "adaptation").mkdir()
    content = result(
        row("wbc", "source_only", 0, 0.5), row("wbc", "default", 0, 0.6), row("glands", "source_only", 0, 0.5)
    )
    (tmp_path / "adaptation" / "x.json").write_text(json.dumps(content | {"file": ""}))
    pages = data_set_pages(tmp_path / "pages", tmp_path)
    assert [page.name for page in pages] == ["wbc.md"]
    [text] = pages.values()
    assert "0.500 → 0.600" in text
    assert DATA_SETS["wbc"].target in text


def test_navigation_lists_the_pages() -> None:
    from benchmarks.report.pages import DOCS

    text = "nav:\n    # data sets, written\n    - Old: old.md\n    # end of data sets\n"
    page = DOCS / "benchmarks" / "adaptation" / "wbc.md"
    assert "    - White blood cells: benchmarks/adaptation/wbc.md\n    # end" in navigation(text, [page])
    assert "old.md" not in navigation(text, [page])


def test_provenance_states_command_and_commit() -> None:
    stated = provenance("benchmarks.adaptation", ["--task", "a b", "--data", "/home/someone/labs"])
    assert stated["command"] == "python -m benchmarks.adaptation --task 'a b' --data labs"
    assert set(stated) == {"command", "date", "commit", "machine"}


def test_objects_are_medians_over_the_seeds() -> None:
    scores = {"mean_f1": 0.5, "pq": 0.5, "aji": 0.5, "count_error": 0.1, "dice": 0.9}
    rows = [
        {"task": "a", "method": "adapted split", "seed": seed, "f1": f1, "target": target, **scores}
        for seed, f1, target in ((0, 0.6, False), (0, 0.7, True), (1, 0.9, True), (2, 0.72, True))
    ]
    lines = object_table([{"rows": rows[:2]}, {"rows": rows[2:]}]).splitlines()
    assert "| a | target | adapted split | 0, 1, 2 | 0.720 (0.700 to 0.900) | 0.500 (0.500 to 0.500) |" in lines[2]
    assert "| a | source | adapted split | 0 | 0.600 | 0.500 |" in lines[3]
    speed = {"task": "a", "ratio": 1.1, "least": 1.05, "most": 1.2, "seconds_per_megapixel_with_head": 0.9}
    speed |= {"of_these_objects_with_head": 0.15, "seconds_per_megapixel_semantic": 0.8}
    assert (
        object_speed_table([{"speed": [speed]}]).splitlines()[2] == "| a | 0.90 | 0.15 | 0.80 | 1.10 (1.05 to 1.20) |"
    )


def test_wanted_objects_that_are_not_reached_stand_out() -> None:
    def rows(method: str, f1: float, count_error: float, dice: float) -> list[dict[str, Any]]:
        row = {"task": "a", "seed": 0, "method": method, "f1": f1, "count_error": count_error, "dice": dice}
        return [row | {"target": target} for target in (False, True)]

    networks = [*rows("adapted components", 0.8, 0.1, 0.9), *rows("adapted instances", 0.86, 0.06, 0.9)]
    networks += [*rows("source_only components", 0, 0, 0.89), *rows("semantic source_only components", 0, 0, 0.9)]
    lines = object_targets([{"rows": networks}]).splitlines()
    assert [line.split(" | ")[-1] for line in lines[2:]] == ["+0.060 |", "**0.060** |", "**-0.010** |", "**-0.010** |"]


def test_gpus_stand_side_by_side() -> None:
    def measured(gpu: str, *rows: dict[str, Any]) -> dict[str, Any]:
        return {"sections": {"inference": {"machine": {"gpu": gpu}, "rows": rows, "error": ""}}}

    def speed(name: str, *values: float, note: str = "") -> dict[str, Any]:
        return {"name": name, "value": values[0], "unit": "MP/s", "values": values, "note": note}

    error = speed("forward", 6.66e-7) | {"unit": "error", "tolerance": 1e-4}
    first = measured("A", speed("files", 1250, 1200, 1300, note="64 images"), speed("x, batch of 4", 1), error)
    results = [first, measured("B", speed("files", 2.5, note="9 images"), speed("slide", 3))]
    assert gpu_speed(results).splitlines() == [
        "| measured | A | B | note |",
        "| --- | --- | --- | --- |",
        "| files | 1,250 MP/s (1,200 to 1,300) | 2.5 MP/s | 64 images; 9 images |",
        "| slide | – | 3 MP/s |  |",
    ]
    assert gpu_correctness(results).splitlines()[2:] == ["| forward | 6.7e-07 | ≤ 0.0001 |"]
