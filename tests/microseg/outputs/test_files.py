import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from microseg.errors import DataError
from microseg.files import file_sha256
from microseg.outputs.files import output_names, remove_partial
from microseg.outputs.record import Provenance, Record, find_record, read_record


def image(folder: Path, name: str, content: bytes = b"x") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def leave_record(folder: Path, name: str, source: Path, outputs: dict[str, str] | None = None) -> None:
    record = Record(
        name=name,
        source=str(source.resolve()),
        source_sha256=file_sha256(source),
        width=1,
        height=1,
        mpp=None,
        classes=("background", "gland"),
        provenance=Provenance(model="m/1"),
        outputs=outputs or {},
        summary={},
        created=datetime.now(UTC),
        seconds=None,
        software={},
    )
    (folder / f"{name}.json").write_text(record.model_dump_json())


def test_names_are_as_short_as_possible(tmp_path: Path) -> None:
    a, b = tmp_path / "one", tmp_path / "two"
    sources = [image(a, "x.png"), image(a, "y.png"), image(a, "y.tif"), image(a, "z.png"), image(b, "z.png")]
    assert output_names(sources, tmp_path) == ["x", "y.png", "y.tif", "one_z.png", "two_z.png"]


def test_names_that_still_clash_are_extended(tmp_path: Path) -> None:
    sources = [image(tmp_path, name) for name in ("a.png", "a.tif", "a.png.bmp")]
    names = output_names(sources, tmp_path)
    assert len({name.casefold() for name in names}) == 3


def test_names_can_be_those_of_files(tmp_path: Path) -> None:
    sources = [os.fsdecode(name) for name in (b"M\xfcller.png", b"a\nb.png", b"c\\d.png")]
    assert output_names([tmp_path / name for name in sources], tmp_path) == ["M%xfcller", "a%nb", "c%d"]
    long = ["\u7d44" * 83 + end for end in ("a.png", "b.png")]
    names = output_names([tmp_path / name for name in long], tmp_path)
    assert len(set(names)) == 2
    assert all(len(name.encode()) <= 180 for name in names)


def test_names_differ_by_more_than_case(tmp_path: Path) -> None:
    assert output_names([tmp_path / "Slide.png", tmp_path / "slide.tif"], tmp_path) == ["Slide.png", "slide.tif"]


def test_equal_names_in_equally_named_folders_get_a_hash(tmp_path: Path) -> None:
    names = output_names([tmp_path / "1" / "s" / "a.png", tmp_path / "2" / "s" / "a.png"], tmp_path)
    assert len(set(names)) == 2
    assert all(name.startswith("a.png-") and len(name) == len("a.png-") + 8 for name in names)


def test_image_keeps_its_name_when_others_are_added(tmp_path: Path) -> None:
    first, second = image(tmp_path, "a.png", b"1"), image(tmp_path, "a.tif", b"2")
    leave_record(tmp_path, "a", first)
    assert output_names([first, second], tmp_path) == ["a", "a.tif"]


def test_overwrites_outputs_of_a_copy_but_not_of_another_image(tmp_path: Path) -> None:
    first = image(tmp_path / "one", "a.png", b"1")
    other, copy = image(tmp_path / "two", "a.png", b"2"), image(tmp_path / "three", "a.png", b"1")
    leave_record(tmp_path, "a", first)
    assert output_names([other], tmp_path) == ["a.png"]
    assert output_names([copy], tmp_path) == ["a"]


@pytest.mark.parametrize("theirs", ["a.geojson", "a.json"])
def test_does_not_overwrite_other_files(tmp_path: Path, theirs: str) -> None:
    (tmp_path / theirs).write_text("{}")
    assert output_names([image(tmp_path, "a.png")], tmp_path) == ["a.png"]


def test_removes_files_that_a_killed_process_had_moved(tmp_path: Path) -> None:
    source, left = image(tmp_path, "a.png"), tmp_path / ".a.abcd1234.partial"
    left.mkdir()
    leave_record(left, "a", source, {"labels": "a.labels.tif", "outlines": "a.geojson"})
    (left / "a.geojson").write_text("{}")  # still to be moved; the label image has been
    (tmp_path / "a.labels.tif").touch()
    remove_partial(tmp_path, [source])
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_name_of_the_batch_summary_is_reserved(tmp_path: Path) -> None:
    assert output_names([tmp_path / "batch.png"], tmp_path) == ["batch.png"]


def test_keeps_temporary_folders_of_other_images(tmp_path: Path) -> None:
    for left in (".a.abcd_123.partial", ".a.b.abcd1234.partial", ".c.abcd1234.partial"):
        (tmp_path / left).mkdir()
    remove_partial(tmp_path, [tmp_path / "a.png", tmp_path / "b.png"])
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.b.abcd1234.partial", ".c.abcd1234.partial"]


def test_rejects_folder_without_exactly_one_record(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got 0"):
        find_record(tmp_path)
    (tmp_path / "batch.json").write_text(json.dumps({"kind": "microseg batch 1"}))
    leave_record(tmp_path, "a", image(tmp_path, "a.png"))
    assert find_record(tmp_path) == tmp_path / "a.json"
    leave_record(tmp_path, "b", image(tmp_path, "b.png"))
    with pytest.raises(DataError, match=r"a\.json, b\.json"):
        find_record(tmp_path)
    with pytest.raises(DataError, match=r"batch\.json"):
        read_record(tmp_path / "batch.json")
