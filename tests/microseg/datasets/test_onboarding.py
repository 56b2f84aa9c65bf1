"""When a delivery is all there, and what became of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from microseg.datasets.onboarding import DropFolder, Onboarding, OnboardingStore, read_incoming_folder
from microseg.errors import LabError

CARD = "lab: lab_c\nstain: H&E\nclasses: [background, gland]\n"


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    folder = tmp_path / "incoming" / "lab_c"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.png").write_bytes(b"a")
    (folder / "lab.yaml").write_text(CARD)
    return folder


def test_a_whole_delivery(lab: Path) -> None:
    delivery = read_incoming_folder(lab)
    assert (delivery.lab, delivery.images, delivery.lacks, delivery.folder) == ("lab_c", 1, "", lab)


def test_the_fingerprint_knows_names_sizes_and_times(lab: Path) -> None:
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


def test_files_of_the_operating_system_do_not_count(lab: Path) -> None:
    before = read_incoming_folder(lab)
    for name in ("Thumbs.db", ".DS_Store", "images/.hidden.png"):
        (lab / name).write_bytes(b"x")
    assert read_incoming_folder(lab) == before


@pytest.mark.parametrize(
    ("spoil", "lacks"),
    [
        (lambda folder: (folder / "lab.yaml").unlink(), "lab.yaml is missing"),
        (lambda folder: (folder / "lab.yaml").write_text("stain: 3"), "lab.yaml"),
        (lambda folder: (folder / "images" / "a.png").unlink(), "images/ has no image yet"),
        (lambda folder: (folder / "images" / "b.png.part").touch(), "b.png.part is being written"),
        (lambda folder: (folder / "images" / "b.TMP").touch(), "b.TMP is being written"),
    ],
)
def test_what_is_missing_is_told(lab: Path, spoil, lacks: str) -> None:
    spoil(lab)
    assert lacks in read_incoming_folder(lab).lacks


def test_slides_are_counted_and_land_too(lab: Path) -> None:
    (lab / "images" / "b.svs").write_bytes(b"slide")
    (lab / "images" / "c.MRXS").write_bytes(b"slide")
    (lab / "images" / "c").mkdir()
    (lab / "images" / "c" / "Data0000.dat").write_bytes(b"part")
    delivery = read_incoming_folder(lab)
    assert (delivery.images, delivery.slides, delivery.lacks) == (1, 2, "")
    assert delivery.content == "images: 1, whole slides: 2"
    (lab / "images" / "a.png").unlink()
    delivery = read_incoming_folder(lab)
    assert (delivery.images, delivery.slides, delivery.lacks) == (0, 2, "")


def test_slides_outside_images_are_told_of(lab: Path) -> None:
    (lab / "slides").mkdir()
    for name in ("slides/a.svs", "b.ndpi"):
        (lab / name).write_bytes(b"slide")
    assert (read_incoming_folder(lab).slides, read_incoming_folder(lab).lacks) == (0, "")
    assert read_incoming_folder(lab).content == "images: 1"
    (lab / "images" / "a.png").unlink()
    assert read_incoming_folder(lab).lacks.startswith("images/ has no image yet, and of the whole slides elsewhere (2)")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="expected the folder of a lab's images"):
        read_incoming_folder(tmp_path / "lab_x")


def test_a_delivery_settles_when_nothing_changes(lab: Path) -> None:
    arrivals = DropFolder(lab.parent, 10)
    assert arrivals.look(0) == []
    assert arrivals.look(9.9) == []
    assert [it.lab for it in arrivals.look(10)] == ["lab_c"]
    assert [it.lab for it in arrivals.look(11)] == ["lab_c"]
    (lab / "images" / "b.png").write_bytes(b"b")
    assert arrivals.look(12) == []
    assert arrivals.look(21) == []
    assert len(arrivals.look(22)) == 1


def test_trickling_files_never_settle(lab: Path) -> None:
    arrivals = DropFolder(lab.parent, 10)
    for second in range(0, 100, 9):
        (lab / "images" / f"{second}.png").write_bytes(b"x")
        assert arrivals.look(second) == []


def test_a_file_under_a_temporary_name_holds_it_back(lab: Path) -> None:
    arrivals = DropFolder(lab.parent, 10)
    (lab / "images" / "b.png.part").touch()
    assert [arrivals.look(second) for second in (0, 20, 40)] == [[], [], []]
    (lab / "images" / "b.png.part").rename(lab / "images" / "b.png")
    assert arrivals.look(41) == []
    assert len(arrivals.look(51)) == 1


def test_each_lab_by_itself(lab: Path) -> None:
    arrivals = DropFolder(lab.parent, 10)
    arrivals.look(0)
    (lab.parent / "lab_d" / "images").mkdir(parents=True)
    (lab.parent / ".trash").mkdir()
    (lab.parent / "a file").touch()
    assert [it.folder.name for it in arrivals.look(10)] == ["lab_c"]
    assert [it.folder.name for it in arrivals.look(20)] == ["lab_c", "lab_d"]


def test_what_became_of_it_is_kept(tmp_path: Path) -> None:
    kept = OnboardingStore(tmp_path / "onboarding_store")
    assert kept.read("lab_c") is None
    landing = kept.write(Onboarding("lab_c", "/in/lab_c", "abc", "announced"))
    assert landing.when
    kept.write(landing, state="done", version=3)
    read = kept.read("lab_c")
    assert read is not None
    assert (read.state, read.version, read.fingerprint) == ("done", 3, "abc")
    assert kept.all() == [read]
    (tmp_path / "onboarding_store" / "lab_c.json").write_text("{}")
    with pytest.raises(LabError, match="Remove the file"):
        kept.read("lab_c")


def test_a_lab_is_held_by_one_process_and_let_go_of_when_it_dies(tmp_path: Path) -> None:
    kept = OnboardingStore(tmp_path)
    hold = (
        "import sys, time; from pathlib import Path; from microseg.datasets.onboarding import OnboardingStore\n"
        "with OnboardingStore(Path(sys.argv[1])).claimed('lab_c', wait=False) as mine:\n"
        "    print(mine, flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with kept.claimed("lab_c", wait=False) as mine:
            assert not mine
        with kept.claimed("lab_d", wait=False) as mine:
            assert mine
    finally:
        other.kill()
        other.wait()
    with kept.claimed("lab_c", wait=False) as mine:
        assert mine
