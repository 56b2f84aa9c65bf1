"""Incoming datasets and the state of their onboarding."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from microseg.datasets.onboarding import DropFolder, Onboarding, OnboardingStore, read_incoming_folder
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
    (lab / "images" / "c.MRXS").write_bytes(b"slide")
    (lab / "images" / "c").mkdir()
    (lab / "images" / "c" / "Data0000.dat").write_bytes(b"part")
    incoming = read_incoming_folder(lab)
    assert (incoming.images, incoming.slides, incoming.missing) == (1, 2, "")
    assert incoming.content == "images: 1, whole slides: 2"
    (lab / "images" / "a.png").unlink()
    incoming = read_incoming_folder(lab)
    assert (incoming.images, incoming.slides, incoming.missing) == (0, 2, "")


def test_states_that_slides_are_outside_images(lab: Path) -> None:
    (lab / "slides").mkdir()
    for name in ("slides/a.svs", "b.ndpi"):
        (lab / name).write_bytes(b"slide")
    assert (read_incoming_folder(lab).slides, read_incoming_folder(lab).missing) == (0, "")
    assert read_incoming_folder(lab).content == "images: 1"
    (lab / "images" / "a.png").unlink()
    assert "no image yet; export regions of the whole slides elsewhere (2)" in read_incoming_folder(lab).missing


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


def test_store_keeps_the_state_of_each_lab(tmp_path: Path) -> None:
    store = OnboardingStore(tmp_path / "onboarding_store")
    assert store.read("lab_c") is None
    onboarding = store.write(Onboarding("lab_c", "/in/lab_c", "abc", "pending"))
    assert onboarding.updated_at
    store.write(onboarding, state="completed", candidate=3)
    read = store.read("lab_c")
    assert read is not None
    assert (read.state, read.candidate, read.fingerprint) == ("completed", 3, "abc")
    assert store.read_all() == [read]
    (tmp_path / "onboarding_store" / "lab_c.json").write_text("{}")
    with pytest.raises(LabError, match="Remove the file"):
        store.read("lab_c")


def test_lock_is_released_when_its_process_dies(tmp_path: Path) -> None:
    store = OnboardingStore(tmp_path)
    hold = (
        "import sys, time; from pathlib import Path; from microseg.datasets.onboarding import OnboardingStore\n"
        "with OnboardingStore(Path(sys.argv[1])).lock('lab_c', wait=False) as locked:\n"
        "    print(locked, flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with store.lock("lab_c", wait=False) as locked:
            assert not locked
        with store.lock("lab_d", wait=False) as locked:
            assert locked
    finally:
        other.kill()
        other.wait()
    with store.lock("lab_c", wait=False) as locked:
        assert locked
