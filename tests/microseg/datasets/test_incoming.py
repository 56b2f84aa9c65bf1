"""Incoming datasets: what has arrived, and whether it is complete."""

import os
from pathlib import Path

import pytest

from microseg.datasets.drop_folder import DropFolder
from microseg.datasets.incoming import IncomingDataset, read_incoming_folder
from microseg.datasets.manifest import ManifestRow, write_manifest
from microseg.errors import LabError

METADATA = "lab: lab_c\nstain: H&E\nclasses: [background, gland]\n"


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    folder = tmp_path / "incoming" / "lab_c"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.png").write_bytes(b"a")
    (folder / "lab.yaml").write_text(METADATA)
    return folder


def test_reads_complete_dataset(lab: Path) -> None:
    incoming = read_incoming_folder(lab)
    assert (incoming.lab, incoming.images, incoming.missing, incoming.folder) == ("lab_c", 1, "", lab)


def test_fingerprint_depends_on_names_sizes_and_times(lab: Path) -> None:
    seen = {read_incoming_folder(lab).fingerprint}
    image = lab / "images" / "a.png"
    for change in (
        lambda: image.write_bytes(b"ab"),
        lambda: os.utime(image, (1, 1)),
        lambda: image.rename(lab / "images" / "b.png"),
        lambda: (lab / "images" / "c.png").write_bytes(b"c"),
        lambda: (lab / "images" / "c.png").unlink() or (lab / "images" / "b.png").rename(lab / "images" / "c.png"),
    ):
        change()
        fingerprint = read_incoming_folder(lab).fingerprint
        assert fingerprint not in seen
        seen.add(fingerprint)


def test_ignores_files_of_the_operating_system(lab: Path) -> None:
    before = read_incoming_folder(lab)
    for name in ("Thumbs.db", ".DS_Store", "images/.hidden.png"):
        (lab / name).write_bytes(b"x")
    assert read_incoming_folder(lab) == before


@pytest.mark.parametrize(
    ("spoil", "missing"),
    [
        (lambda folder: (folder / "lab.yaml").unlink(), "lab.yaml is missing"),
        (lambda folder: (folder / "lab.yaml").write_text("stain: 3"), "lab.yaml"),
        (lambda folder: (folder / "images" / "a.png").unlink(), "images/ has no image yet"),
        (lambda folder: (folder / "images" / "b.png.part").touch(), "b.png.part is being written"),
        (lambda folder: (folder / "images" / "b.TMP").touch(), "b.TMP is being written"),
    ],
)
def test_states_what_is_missing(lab: Path, spoil, missing: str) -> None:
    spoil(lab)
    assert missing in read_incoming_folder(lab).missing


def test_counts_slides(lab: Path) -> None:
    (lab / "images" / "b.svs").write_bytes(b"slide")
    (lab / "images" / "c.NDPI").write_bytes(b"slide")
    (lab / "images" / "c").mkdir()
    (lab / "images" / "c" / "Data0000.dat").write_bytes(b"part")
    incoming = read_incoming_folder(lab)
    assert (incoming.images, incoming.slides, incoming.missing) == (1, 2, "")
    assert incoming.content == "images: 1, whole slides: 2"
    (lab / "images" / "a.png").unlink()
    incoming = read_incoming_folder(lab)
    assert (incoming.images, incoming.slides, incoming.missing) == (0, 2, "")


def test_counts_ome_zarr_as_slides(lab: Path) -> None:
    (lab / "images" / "a.png").unlink()
    for name in ("b.zarr/0/0.0.0", "b.zarr/.zattrs", "b.zarr/.zgroup", "c.zarr/zarr.json", "d.zarr.zip", "e.zarr.url"):
        (lab / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (lab / "images" / name).write_bytes(b"part")
    (lab / "images.csv").write_text("file,group\nb.zarr,1\nc.zarr,2\nd.zarr.zip,3\ne.zarr.url,4\n")
    incoming = read_incoming_folder(lab)
    assert (incoming.images, incoming.slides, incoming.missing) == (0, 4, "")


def test_a_slide_without_its_companions_is_not_complete(lab: Path) -> None:
    (lab / "images" / "a.mrxs").write_bytes(b"slide")
    assert "a.mrxs lacks Slidedat.ini" in read_incoming_folder(lab).missing
    (lab / "images" / "a").mkdir()
    index = "[HIERARCHICAL]\nINDEXFILE = Index.dat\n[DATAFILE]\nFILE_0 = Data0000.dat\n"
    (lab / "images" / "a" / "Slidedat.ini").write_text(index)
    (lab / "images" / "a" / "Index.dat").write_bytes(b"index")
    assert "a.mrxs lacks Data0000.dat" in read_incoming_folder(lab).missing
    (lab / "images" / "a" / "Data0000.dat").write_bytes(b"data")
    assert read_incoming_folder(lab).missing == ""


def test_states_that_slides_are_outside_images(lab: Path) -> None:
    (lab / "slides").mkdir()
    for name in ("slides/a.svs", "b.ndpi"):
        (lab / name).write_bytes(b"slide")
    assert (read_incoming_folder(lab).slides, read_incoming_folder(lab).missing) == (0, "")
    assert read_incoming_folder(lab).content == "images: 1"
    (lab / "images" / "a.png").unlink()
    assert "no image yet; move the whole slides elsewhere (2)" in read_incoming_folder(lab).missing


def test_rejects_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="expected the folder of a lab's images"):
        read_incoming_folder(tmp_path / "lab_x")


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


# ---- what images.csv names, and links


def test_waits_for_the_files_that_the_table_names(lab: Path, tmp_path: Path) -> None:
    (lab / "images.csv").write_text("file,group\n" + "".join(f"{name}.png,{name}\n" for name in "abcdefg"))
    for name in "bc":
        (lab / "images" / f"{name}.png").write_bytes(b"x")
    message = "images.csv names 7 files, of which 4 are not in images/ yet (d.png, e.png, f.png …)"
    assert message in read_incoming_folder(lab).missing
    dataset = tmp_path / "labs" / "lab_c"  # it has four of them already
    dataset.mkdir(parents=True)
    rows = [ManifestRow(f"images/{name}.png", None, name, "train", 9, 9, None, name * 64) for name in "abde"]
    write_manifest(dataset, rows)
    assert "2 are not in images/ yet (f.png, g.png)" in read_incoming_folder(lab, labs=dataset.parent).missing
    for name in "fg":
        (lab / "images" / f"{name}.PNG").write_bytes(b"x")
    assert read_incoming_folder(lab, labs=dataset.parent).missing == ""


def test_links_to_an_allowed_folder_are_followed(lab: Path, tmp_path: Path) -> None:
    share = tmp_path / "share" / "scans"
    share.mkdir(parents=True)
    for name in ("x.png", "y.png"):
        (share / name).write_bytes(b"x")
    (lab / "images" / "x.png").symlink_to(share / "x.png")
    (lab / "images" / "a.png").unlink()
    assert read_incoming_folder(lab, roots=[tmp_path / "share"]).images == 1
    (lab / "images" / "x.png").unlink()
    (lab / "images").rmdir()
    (lab / "images").symlink_to(share)
    incoming = read_incoming_folder(lab, roots=[tmp_path / "share"])
    assert (incoming.images, incoming.missing) == (2, "")
    (share / "loop").symlink_to(lab)
    assert read_incoming_folder(lab, roots=[tmp_path / "share"]).images == 2


@pytest.mark.parametrize("kind", ["file", "folder", "dataset", "nothing"])
def test_other_links_are_refused_with_the_reason(lab: Path, tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "b.png").write_bytes(b"x")
    reason = f"is a link to {secret}"
    drop_folder = DropFolder(lab.parent, 0)
    if kind == "file":
        (lab / "images" / "b.png").symlink_to(secret / "b.png")
    elif kind == "folder":
        (lab / "masks").symlink_to(secret)
    elif kind == "dataset":
        (lab.parent / "lab_d").symlink_to(secret)
    else:
        (lab / "images" / "b.png").symlink_to(secret / "gone.png")
    drop_folder.poll(0)
    found = {incoming.folder.name: incoming.missing for incoming in drop_folder.poll(1)}
    missing = found["lab_d" if kind == "dataset" else "lab_c"]
    assert reason in missing
    assert ("which is not there" if kind == "nothing" else "add the folder to data.allowed_roots") in missing


# ---- one bad folder, and names of any encoding


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
    (bad / "lab.yaml").write_text(METADATA.replace("lab_c", "lab_d"))  # it is looked at again when it changes
    drop_folder.poll(20)
    assert [incoming.missing for incoming in drop_folder.poll(30)] == ["", ""]


def test_names_in_any_encoding_are_part_of_the_fingerprint(lab: Path) -> None:
    before = read_incoming_folder(lab).fingerprint
    for name in (b"f\xe9vrier.png", b"a\nb.png", "\u67d3\u8272.png".encode(), b"-rf=.png", b"x" * 251 + b".png"):
        (lab / "images" / os.fsdecode(name)).write_bytes(b"x")
        incoming = read_incoming_folder(lab)
        assert incoming.fingerprint != before
        before = incoming.fingerprint
    assert (incoming.images, incoming.missing) == (6, "")


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


# ---- cost


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
        "lab.yaml": lambda: (lab / "lab.yaml").write_text(METADATA + "mpp: 0.5\n"),
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
