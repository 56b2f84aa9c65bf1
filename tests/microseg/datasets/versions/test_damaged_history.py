import pytest

from microseg.datasets.versions.file_hashes import known_hashes
from microseg.datasets.versions.history import LocalHistory, read_note
from microseg.errors import VersioningError

DAMAGED = (
    "[" * 20_000,
    "null",
    '{"lab": "north"}',
    '{"lab": 1, "digest": 2, "files": "", "bytes": 0, "committed_at": 0}',
)


@pytest.mark.parametrize("text", ["[" * 20_000, "{}", "[[1]]", '[[1, 2, 3, "x", ""]]', ""])
def test_damaged_hashes_are_computed_again(tmp_path, text):
    (tmp_path / "hashes.json").write_text(text)
    with known_hashes(tmp_path / "hashes.json"):
        pass


@pytest.mark.parametrize("line", DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_history_is_refused(tmp_path, line):
    (tmp_path / "north.jsonl").write_text(line)
    with pytest.raises(VersioningError, match="expected one JSON object a line"):
        LocalHistory(tmp_path).read("north")
    with pytest.raises(VersioningError, match="expected the note of a version"):
        read_note("north", f"000001-{'0' * 32}.json", line.encode())
