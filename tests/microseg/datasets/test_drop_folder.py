"""The drop folder: which incoming datasets have not changed for the quiet period."""

from pathlib import Path

import pytest

from microseg.datasets.drop_folder import DropFolder
from microseg.datasets.incoming import IncomingDataset, read_incoming_folder


def test_dataset_is_quiet_when_nothing_changes(lab: Path) -> None:
    drop_folder = DropFolder(lab.parent, 10)
    assert drop_folder.poll(0) == []
    assert drop_folder.poll(9.9) == []
    assert [it.lab for it in drop_folder.poll(10)] == ["lab_c"]
    assert [it.lab for it in drop_folder.poll(11)] == ["lab_c"]
    (lab / "images" / "b.png").write_bytes(b"b")
    assert drop_folder.poll(12) == []
    assert drop_folder.poll(21) == []
    assert len(drop_folder.poll(22)) == 1


def test_dataset_is_not_quiet_while_files_arrive(lab: Path) -> None:
    drop_folder = DropFolder(lab.parent, 10)
    for second in range(0, 100, 9):
        (lab / "images" / f"{second}.png").write_bytes(b"x")
        assert drop_folder.poll(second) == []


def test_dataset_is_not_quiet_while_a_temporary_file_exists(lab: Path) -> None:
    drop_folder = DropFolder(lab.parent, 10)
    (lab / "images" / "b.png.part").touch()
    assert [drop_folder.poll(second) for second in (0, 20, 40)] == [[], [], []]
    (lab / "images" / "b.png.part").rename(lab / "images" / "b.png")
    assert drop_folder.poll(41) == []
    assert len(drop_folder.poll(51)) == 1


def test_polls_each_lab_separately(lab: Path) -> None:
    drop_folder = DropFolder(lab.parent, 10)
    drop_folder.poll(0)
    (lab.parent / "lab_d" / "images").mkdir(parents=True)
    (lab.parent / ".trash").mkdir()
    (lab.parent / "a file").touch()
    assert [it.folder.name for it in drop_folder.poll(10)] == ["lab_c"]
    assert [it.folder.name for it in drop_folder.poll(20)] == ["lab_c", "lab_d"]


BAD = {
    "a date that is none": b"lab: lab_x\nstain: x\nmpp: 2026-13-45\nclasses: [background, gland]\n",
    "a float that is none": b"lab: lab_x\nstain: !!float abc\nclasses: [background, gland]\n",
    "deep nesting": b"lab: " + b"[" * 50_000,
    "a Python object": b"lab: !!python/object/apply:os.system [ls]",
    "Latin-1": "stain: H\xe4malaun".encode("latin-1"),
    "bytes": bytes(range(256)),
    "a list": b"- 1",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", BAD)
def test_one_bad_folder_does_not_concern_the_others(lab: Path, kind: str) -> None:
    bad = lab.parent / "a bad one"
    (bad / "images").mkdir(parents=True)
    (bad / "images" / "a.png").write_bytes(b"a")
    (bad / "lab.yaml").write_bytes(BAD[kind])
    drop_folder = DropFolder(lab.parent, 10)
    drop_folder.poll(0)
    found = {incoming.folder.name: incoming for incoming in drop_folder.poll(10)}
    assert found["lab_c"].missing == ""
    assert found["a bad one"].missing != ""
    (bad / "lab.yaml").write_text((lab / "lab.yaml").read_text().replace("lab_c", "lab_d"))  # read again
    drop_folder.poll(20)
    assert [incoming.missing for incoming in drop_folder.poll(30)] == ["", ""]


def test_folder_that_cannot_be_read_is_logged_once_and_read_later(
    lab: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    drop_folder = DropFolder(lab.parent, 10)
    with monkeypatch.context() as patch:
        patch.setattr("microseg.datasets.drop_folder.read_incoming_folder", lambda *_, **__: 1 / 0)
        assert [drop_folder.poll(second) for second in range(3)] == [[], [], []]
    assert [record.message for record in caplog.records] == [
        f"{lab} cannot be read; it is tried again: ZeroDivisionError: division by zero"
    ]
    drop_folder.poll(3)
    assert len(drop_folder.poll(13)) == 1


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders that were read whole."""
    read: list[str] = []
    original = read_incoming_folder

    def spy(folder: Path, *arguments: object, **options: object) -> IncomingDataset:
        read.append(folder.name)
        return original(folder, *arguments, **options)

    monkeypatch.setattr("microseg.datasets.drop_folder.read_incoming_folder", spy)
    return read


def test_old_datasets_are_read_rarely(lab: Path, scans: list[str]) -> None:
    drop_folder = DropFolder(lab.parent, 120)
    polls = range(0, 3 * 24 * 3600, 60)
    assert sum(len(drop_folder.poll(second)) for second in polls) > 0.99 * len(polls)
    assert len(scans) < 150  # of 4320 polls; at last once an hour


@pytest.mark.parametrize("change", ["a file", "a folder", "lab.yaml", "images.csv", "removed", "renamed"])
def test_changes_of_old_datasets_are_noticed_at_once(lab: Path, change: str) -> None:
    drop_folder = DropFolder(lab.parent, 10)
    for second in (0, 10, 100_000):
        drop_folder.poll(second)
    image = lab / "images" / "a.png"
    {
        "a file": lambda: (lab / "images" / "b.png").touch(),
        "a folder": lambda: (lab / "masks").mkdir() or (lab / "masks" / "a.png").touch(),
        "lab.yaml": lambda: (lab / "lab.yaml").write_text(
            "lab: lab_c\nstain: H&E\nclasses: [background, gland]\nmpp: 0.5\n"
        ),
        "images.csv": lambda: (lab / "images.csv").write_text("file,group\na.png,1\n"),
        "removed": image.unlink,
        "renamed": lambda: image.rename(lab / "images" / "c.png"),
    }[change]()
    assert drop_folder.poll(100_015) == []
    assert len(drop_folder.poll(100_030)) == 1


def test_file_that_is_written_again_in_place_is_noticed_within_an_hour(lab: Path) -> None:
    drop_folder = DropFolder(lab.parent, 10)
    for second in (0, 10, 100_000):
        drop_folder.poll(second)
    (lab / "images" / "a.png").write_bytes(b"other")
    assert len(drop_folder.poll(100_015)) == 1
    assert drop_folder.poll(103_601) == []


def test_temporary_file_that_was_left_over_is_reported(lab: Path) -> None:
    drop_folder = DropFolder(lab.parent, 10)
    (lab / "images" / "b.png.part").touch()
    assert [drop_folder.poll(second) for second in (0, 50, 99)] == [[], [], []]
    assert [it.missing for it in drop_folder.poll(100)] == [
        "b.png.part is being written; remove it if it was left over"
    ]
