"""The benchmark of cost as work grows: its parts work on few items."""

from pathlib import Path

from benchmarks import scaling


def test_parts_of_a_lab_work_one_after_the_other(tmp_path: Path) -> None:
    costs = {}
    for part in ("ingest", "version", "arrival"):
        costs |= scaling._PARTS[part](4, tmp_path)
    assert list(costs) == ["ingest", "version", "version, nothing new", "ingest of ten more", "version of ten more"]
    assert all(seconds > 0 and cpu > 0 for seconds, cpu in costs.values())


def test_tables_are_of_images_that_are_segmented_already(tmp_path: Path) -> None:
    costs = scaling._PARTS["segment"](3, tmp_path) | scaling._PARTS["tables"](3, tmp_path)
    assert list(costs) == ["segment", "same batch again: tables", "page of the batch"]


def test_table_states_the_cost_of_each_item() -> None:
    table = scaling._table([{"part": "ingest", "items": 100, "seconds": 3.0, "cpu": 2.0, "peak_mb": 512.0}])
    assert table["CPU ms for each"].tolist() == ["20"]
