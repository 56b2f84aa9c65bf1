import csv
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from microseg.annotations.index_masks import read_mask
from microseg.datasets import ingest
from microseg.datasets.dataset import open_lab_dataset
from microseg.datasets.ingest import ingest_lab, lab_lock
from microseg.errors import LabError
from microseg.slides.images import image_digest, read_image

CARD = "lab: north\nstain: H&E\nclasses: [background, gland]\n"


def noise(seed=0, height=24, width=32):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def mask(value=1, height=24, width=32):
    array = np.zeros((height, width), np.uint8)
    array[2:8, 3:9] = value
    return array


def deliver(folder, images, *, masks=(), card=CARD, facts=None):
    """A delivery of images given as name -> seed."""
    for name, seed in dict(images).items():
        save(folder / "images" / f"{name}.png", noise(seed))
    for name in masks:
        save(folder / "masks" / f"{name}.png", mask())
    folder.mkdir(exist_ok=True)
    (folder / "lab.yaml").write_text(card)
    if facts is not None:
        (folder / "images.csv").write_text(facts)
    return folder


@pytest.fixture
def prepare(tmp_path):
    return lambda source, **options: ingest_lab(source, tmp_path / "labs", tmp_path / "quarantine", **options)


def snapshot(folder):
    """Every file below a folder with its content and time, links and all."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def reasons(tmp_path, lab="north"):
    with (tmp_path / "quarantine" / lab / "reasons.csv").open(newline="") as file:
        return {line["file"]: line["reason"] for line in csv.DictReader(file)}


# --- one delivery


def test_a_delivery_becomes_a_dataset(tmp_path, prepare):
    source = deliver(tmp_path / "in", {"a": 1, "b": 2, "c": 3}, masks="ab", card=f"{CARD}mpp: 0.5\n")
    save(source / "test" / "images" / "t.png", noise(9))
    (source / "images" / ".DS_Store").touch()
    before = snapshot(source)
    calls = []
    prepared = prepare(source, progress=lambda *call: calls.append(call))
    assert snapshot(source) == before
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert prepared.to_dict() == {
        "lab": "north",
        "folder": str(tmp_path / "labs" / "north"),
        "images": 3,
        "labelled": 2,
        "added": 3,
        "relabelled": 0,
        "unchanged": 0,
        "refused": [],
        "skipped": ["images/.DS_Store"],
    }
    json.dumps(prepared.to_dict())
    lab = open_lab_dataset(prepared.folder)
    assert sorted(path.name for path in prepared.folder.rglob("*.*")) == [
        "a.png", "a.png", "b.png", "b.png", "c.png", "lab.yaml", "manifest.csv",
    ]  # fmt: skip
    assert lab.metadata.labelled
    assert lab.metadata.mpp == 0.5
    assert {row.split for row in lab.rows} == {"train", "val"}
    for row, seed in zip(lab.rows, (1, 2, 3), strict=True):
        assert np.array_equal(read_image(lab.image_path(row)), noise(seed))
        assert (row.width, row.height, row.mpp, row.sha256) == (32, 24, 0.5, image_digest(noise(seed)))
        assert row.group == row.image[len("images/") : -len(".png")]
        if row.mask:
            assert np.array_equal(read_mask(lab.mask_path(row)), mask())
    assert not (tmp_path / "quarantine").exists()


def test_every_kind_of_file_becomes_png(tmp_path, prepare):
    source = deliver(tmp_path / "in", {"plain": 1})
    save(source / "images" / "gray.bmp", noise(2)[:, :, 0])
    tifffile.imwrite(source / "images" / "deep.ome.tif", noise(3).astype(np.uint16) * 257, photometric="rgb")
    save(source / "images" / "secret.png", noise(4), exif=exif_with("patient"))
    palette = Image.fromarray(mask(), mode="P")
    palette.putpalette([0, 0, 0, 255, 0, 0])
    (source / "masks").mkdir()
    palette.save(source / "masks" / "gray.png")
    folder = prepare(source).folder
    images = sorted(path.name for path in (folder / "images").iterdir())
    assert images == ["deep.png", "gray.png", "plain.png", "secret.png"]
    for path in folder.glob("images/*"):
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("PNG", "RGB")
    with Image.open(folder / "masks" / "gray.png") as image:
        assert (image.format, image.mode) == ("PNG", "L")
        assert np.array_equal(np.asarray(image), mask())
    assert np.array_equal(read_image(folder / "images" / "deep.png"), noise(3))
    assert (folder / "images" / "plain.png").read_bytes() == (source / "images" / "plain.png").read_bytes()
    assert b"patient" in (source / "images" / "secret.png").read_bytes()
    assert b"patient" not in (folder / "images" / "secret.png").read_bytes()


def exif_with(text):
    exif = Image.Exif()
    exif[270] = text
    return exif


def test_groups_and_pixel_sizes(tmp_path, prepare):
    names = {f"p{patient}_{i}": 10 * patient + i for patient in range(6) for i in range(3)}
    facts = "file,group,mpp\n" + "".join(f"{name}.png,{name[:2]},\n" for name in names).replace(
        "p0_0.png,p0,", "p0_0.png,p0,0.25"
    )
    source = deliver(tmp_path / "in", names, card=f"{CARD}mpp: 0.5\n", facts=facts)
    lab = open_lab_dataset(prepare(source, val_fraction=0.3, test_fraction=0.3, seed=1).folder)
    splits = {}
    for row in lab.rows:
        splits.setdefault(row.group, set()).add(row.split)
        assert row.mpp == (0.25 if row.image == "images/p0_0.png" else 0.5)
    assert splits.keys() == {f"p{i}" for i in range(6)}
    assert all(len(found) == 1 for found in splits.values())
    assert set.union(*splits.values()) == {"train", "val", "test"}


def test_pixel_size_of_the_file_counts_where_the_lab_says_nothing(tmp_path, prepare):
    source = deliver(tmp_path / "in", {"a": 1})
    tifffile.imwrite(
        source / "images" / "b.tif", noise(2), photometric="rgb", resolution=(40_000, 40_000), resolutionunit=3
    )
    assert [row.mpp for row in open_lab_dataset(prepare(source).folder).rows] == [None, 0.25]


def test_few_labels_reach_every_split(tmp_path, prepare):
    names = {f"i{n:02}": n for n in range(20)}
    lab = open_lab_dataset(prepare(deliver(tmp_path / "in", names, masks=["i03", "i07", "i11"])).folder)
    assert {row.split for row in lab.select(labelled=True)} == {"train", "val", "test"}


# --- refusals


def test_refused_files_are_kept_aside(tmp_path, prepare):
    source = deliver(tmp_path / "in", {"a": 1, "b": 2, "tiny": 3}, masks=["b", "alone"])
    save(source / "images" / "tiny.png", noise(3, height=8))
    save(source / "masks" / "b.png", mask(7))
    (source / "images" / "empty.png").touch()
    before = snapshot(source)
    prepared = prepare(source)
    refused = {"images/b.png", "images/empty.png", "images/tiny.png", "masks/alone.png", "masks/b.png"}
    assert {refusal.file for refusal in prepared.refused} == refused
    assert reasons(tmp_path) == {refusal.file: refusal.reason for refusal in prepared.refused}
    for file in refused:
        assert (tmp_path / "quarantine" / "north" / file).read_bytes() == (source / file).read_bytes()
    assert [row.image for row in open_lab_dataset(prepared.folder).rows] == ["images/a.png"]
    assert snapshot(source) == before
    json.dumps(prepared.to_dict())


def test_nothing_accepted_leaves_the_dataset(tmp_path, prepare):
    prepare(deliver(tmp_path / "in", {"a": 1}))
    before = snapshot(tmp_path / "labs")
    source = deliver(tmp_path / "second", {})
    (source / "images").mkdir()
    (source / "images" / "broken.png").write_bytes(b"broken")
    with pytest.raises(LabError, match=r"all 1 files are refused\. images/broken.png: .*reasons are in .*quarantine"):
        prepare(source)
    assert snapshot(tmp_path / "labs") == before
    assert reasons(tmp_path).keys() == {"images/broken.png"}


def test_slides_beside_images_are_refused_and_counted(tmp_path, prepare):
    source = deliver(tmp_path / "in", {"a": 1})
    (source / "images" / "b.svs").write_bytes(b"slide")
    (source / "images.csv").write_text("file,group\na.png,b\nb.svs,b\n")  # it is an image's line all the same
    prepared = prepare(source)
    assert (prepared.images, len(prepared.refused), prepared.slides) == (1, 1, 1)
    assert "got a whole slide (.svs)" in reasons(tmp_path)["images/b.svs"]
    assert (tmp_path / "quarantine" / "north" / "images" / "b.svs").read_bytes() == b"slide"


def test_slides_alone_are_refused_as_a_whole(tmp_path, prepare):
    source = deliver(tmp_path / "in", {})
    (source / "images").mkdir()
    for name in ("a.svs", "b.ndpi", "c.txt"):
        (source / "images" / name).write_bytes(b"slide")
    with pytest.raises(LabError, match=r"all 3 files are refused, whole slides among them: 2\. .*Export regions of it"):
        prepare(source)
    assert reasons(tmp_path).keys() == {"images/a.svs", "images/b.ndpi", "images/c.txt"}


def test_binary_masks_with_255_are_not_taken_for_ignored(tmp_path, prepare):
    source = deliver(tmp_path / "in", {"a": 1}, card=f"{CARD}labelled: true\n")
    save(source / "masks" / "a.png", mask(255))
    with pytest.raises(LabError, match="write 1 where it is gland"):
        prepare(source)
    assert not (tmp_path / "labs" / "north").exists()


@pytest.mark.parametrize(
    ("card", "masks", "message"),
    [
        ("labelled: true", "", "expected masks"),
        ("labelled: false", "a", "expected no masks"),
        ("labelled: true", "x", "expected masks"),
    ],
)
def test_labelled_must_be_true(tmp_path, prepare, card, masks, message):
    source = deliver(tmp_path / "in", {"a": 1}, masks=masks, card=f"{CARD}{card}\n")
    with pytest.raises(LabError, match=message):
        prepare(source)
    assert not (tmp_path / "labs" / "north").exists()


def test_deliveries_that_cannot_be_read_at_all(tmp_path, prepare):
    with pytest.raises(LabError, match="expected the folder of a lab's images"):
        prepare(tmp_path / "none")
    (tmp_path / "in").mkdir()
    with pytest.raises(LabError, match="classes: \\[background, gland\\]"):  # the template
        prepare(tmp_path / "in")
    (tmp_path / "in" / "lab.yaml").write_text(CARD)
    with pytest.raises(LabError, match="expected a folder images/"):
        prepare(tmp_path / "in")
    (tmp_path / "in" / "images").mkdir()
    with pytest.raises(LabError, match="expected images, found none"):
        prepare(tmp_path / "in")
    assert not (tmp_path / "labs").exists()


@pytest.mark.parametrize("name", ["../north", "North", "a/b", "", ".hidden"])
def test_names_that_are_not_plain(tmp_path, prepare, name):
    source = deliver(tmp_path / "in", {"a": 1}, card=CARD.replace("lab: north\n", ""))
    with pytest.raises(LabError, match="lower-case letters"):
        prepare(source, name=name)
    (source / "lab.yaml").write_text(CARD.replace("north", f"'{name}'"))
    with pytest.raises(LabError, match="lower-case letters"):
        prepare(source)
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


def test_name_given(tmp_path, prepare):
    with pytest.raises(LabError, match="'south' as asked for, got 'north'"):
        prepare(deliver(tmp_path / "in", {"a": 1}), name="south")
    source = deliver(tmp_path / "in", {"a": 1}, card=CARD.replace("lab: north\n", ""))
    assert prepare(source, name="south").folder == tmp_path / "labs" / "south"


def test_the_dataset_itself_is_no_delivery(tmp_path, prepare):
    folder = prepare(deliver(tmp_path / "in", {"a": 1})).folder
    with pytest.raises(LabError, match="got the dataset itself"):
        prepare(folder)


def test_image_list_must_fit(tmp_path, prepare):
    source = deliver(tmp_path / "in", {"a": 1}, facts="file,group\na.png,p\nb.png,p\n")
    with pytest.raises(LabError, match=r"images.csv: expected files in images/, got b.png"):
        prepare(source)
    (source / "images" / "b.png").write_bytes(b"broken")  # named, delivered, refused
    assert prepare(source).images == 1


# --- a second delivery


def test_the_same_delivery_again_changes_nothing(tmp_path, prepare):
    source = deliver(tmp_path / "in", {"a": 1, "b": 2}, masks="a")
    prepare(source)
    before = snapshot(tmp_path / "labs")
    prepared = prepare(source)
    assert (prepared.images, prepared.added, prepared.unchanged) == (2, 0, 2)
    assert snapshot(tmp_path / "labs") == before


def test_a_second_delivery_adds(tmp_path, prepare):
    first = prepare(deliver(tmp_path / "in", {f"a{n}": n for n in range(10)}, masks=[f"a{n}" for n in range(5)]))
    splits = {row.image: row.split for row in open_lab_dataset(first.folder).rows}
    files = snapshot(first.folder)
    second = prepare(deliver(tmp_path / "more", {f"b{n}": 100 + n for n in range(10)}))
    assert (second.images, second.labelled, second.added, second.unchanged) == (20, 5, 10, 0)
    lab = open_lab_dataset(second.folder)
    assert splits.items() <= {row.image: row.split for row in lab.rows}.items()
    later = snapshot(second.folder)
    assert all(later[name] == content for name, content in files.items() if name.endswith(".png"))
    assert {path.name for path in (tmp_path / "labs").iterdir()} == {"north", ".north.lock"}


def test_a_second_delivery_of_a_name_or_content_that_is_there(tmp_path, prepare):
    prepare(deliver(tmp_path / "in", {"a": 1, "b": 2}))
    source = deliver(tmp_path / "more", {"A": 7, "copy": 2, "new": 8}, masks=["copy"])
    prepared = prepare(source)
    assert prepared.added == 1
    assert {refusal.file: refusal.reason for refusal in prepared.refused} == reasons(tmp_path)
    refused = reasons(tmp_path)
    assert refused.keys() == {"images/A.png", "images/copy.png", "masks/copy.png"}
    assert "that of images/a.png, which has other content" in refused["images/A.png"]
    assert "content of images/b.png" in refused["images/copy.png"]
    assert (tmp_path / "quarantine" / "north" / "images" / "A.png").exists()
    assert np.array_equal(read_image(prepared.folder / "images" / "a.png"), noise(1))


def test_masks_may_come_later(tmp_path, prepare):
    first = prepare(deliver(tmp_path / "in", {"a": 1, "b": 2, "c": 3}, card=f"{CARD}labelled: false\n"))
    splits = [row.split for row in open_lab_dataset(first.folder).rows]
    source = deliver(tmp_path / "more", {"a": 1}, masks="a", card=f"{CARD}labelled: true\n")
    prepared = prepare(source)
    assert (prepared.images, prepared.labelled, prepared.added, prepared.relabelled, prepared.unchanged) == (
        3,
        1,
        0,
        1,
        0,
    )
    lab = open_lab_dataset(prepared.folder)
    assert lab.metadata.labelled
    assert [row.split for row in lab.rows] == splits
    assert np.array_equal(read_mask(lab.mask_path(lab.rows[0])), mask())
    assert prepare(source).unchanged == 1
    unlabelled = deliver(tmp_path / "third", {"d": 4}, card=f"{CARD}labelled: false\n")
    assert open_lab_dataset(prepare(unlabelled).folder).metadata.labelled


def test_another_mask_for_the_same_image_is_refused(tmp_path, prepare):
    prepare(deliver(tmp_path / "in", {"a": 1}, masks="a"))
    source = deliver(tmp_path / "more", {"a": 1, "b": 2})
    save(source / "masks" / "a.png", mask()[::-1])
    prepared = prepare(source)
    assert {refusal.file for refusal in prepared.refused} == {"images/a.png", "masks/a.png"}
    assert "expected the mask that the dataset has" in reasons(tmp_path)["images/a.png"]
    assert np.array_equal(read_mask(prepared.folder / "masks" / "a.png"), mask())


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (CARD.replace("H&E", "PAS"), "expected stain H&E as in the dataset, got PAS"),
        (CARD.replace("gland", "nucleus"), "expected classes .*gland.* got .*nucleus"),
        (f"{CARD}mpp: 0.25\n", "expected mpp 0.5 as in the dataset, got 0.25.*images.csv"),
    ],
)
def test_a_second_delivery_that_contradicts_the_card(tmp_path, prepare, card, message):
    prepare(deliver(tmp_path / "in", {"a": 1}, card=f"{CARD}mpp: 0.5\n"))
    before = snapshot(tmp_path / "labs")
    with pytest.raises(LabError, match=message):
        prepare(deliver(tmp_path / "more", {"b": 2}, card=card))
    assert snapshot(tmp_path / "labs") == before


def test_what_was_unknown_may_be_said_later(tmp_path, prepare):
    prepare(deliver(tmp_path / "in", {"a": 1, "b": 2}))
    source = deliver(tmp_path / "more", {"c": 3}, card=f"{CARD}mpp: 0.5\ntissue: colon\n", facts="file,mpp\na,0.25\n")
    lab = open_lab_dataset(prepare(source).folder)
    assert [row.mpp for row in lab.rows] == [0.25, 0.5, 0.5]
    assert (lab.metadata.mpp, lab.metadata.tissue) == (0.5, "colon")
    plain = open_lab_dataset(prepare(deliver(tmp_path / "third", {"d": 4})).folder)
    assert (plain.metadata.mpp, plain.rows[3].mpp) == (0.5, 0.5)


def test_a_settled_group_cannot_change(tmp_path, prepare):
    prepare(deliver(tmp_path / "in", {"a": 1}, facts="file,group\na.png,p1\n"))
    with pytest.raises(LabError, match=r"expected group 'p1' for a\.png as in the dataset, got 'p2'"):
        prepare(deliver(tmp_path / "more", {"a": 1, "b": 2}, facts="file,group\na.png,p2\nb.png,p2\n"))
    later = prepare(deliver(tmp_path / "more", {"b": 2}, facts="file,group\nb.png,p1\n"))
    assert len({row.split for row in open_lab_dataset(later.folder).rows}) == 1


# --- killed half-way

CODE = Path(ingest.__file__).parents[2]
KILLED = """
import os, sys
from pathlib import Path
from microseg.datasets import ingest
step = sys.argv[1]
original = getattr(ingest, step) if step != "rename" else Path.rename
count = 0
def dying(*arguments, **options):
    global count
    count += 1
    if count == int(sys.argv[2]):
        os._exit(9)
    return original(*arguments, **options)
if step == "rename":
    Path.rename = dying
else:
    setattr(ingest, step, dying)
ingest.ingest_lab(*map(Path, sys.argv[3:6]))
"""


@pytest.mark.parametrize(
    ("step", "call"),
    [("quarantine_files", 1), ("_write_image", 3), ("write_manifest", 1), ("rename", 1), ("rename", 2)],
)
def test_a_killed_run_leaves_the_old_dataset_or_the_next_run_finds_it(tmp_path, prepare, step, call):
    first = prepare(deliver(tmp_path / "in", {"a": 1, "b": 2}, masks="a"))
    before = snapshot(first.folder)
    more = deliver(tmp_path / "more", {f"n{i}": 10 + i for i in range(4)})
    (more / "images" / "broken.png").write_bytes(b"broken")
    folders = [str(tmp_path / name) for name in ("more", "labs", "quarantine")]
    command = [sys.executable, "-c", KILLED, step, str(call), *folders]
    assert subprocess.run(command, check=False, cwd=CODE).returncode == 9
    if (step, call) == ("rename", 2):  # between the two renames there is none, until the next call
        assert not first.folder.exists()
        with lab_lock(tmp_path / "labs", "north"):
            assert snapshot(first.folder) == before
    assert snapshot(first.folder) == before
    prepared = prepare(more)
    assert (prepared.images, prepared.added, len(prepared.refused)) == (6, 4, 1)
    assert {path.name for path in (tmp_path / "labs").iterdir()} == {"north", ".north.lock"}


def test_a_run_killed_after_the_swap_has_finished(tmp_path, prepare):
    folder = prepare(deliver(tmp_path / "in", {"a": 1})).folder
    shutil.copytree(folder, tmp_path / "labs" / ".north.old")
    (tmp_path / "labs" / ".north.new").mkdir()
    before = snapshot(folder)
    assert prepare(tmp_path / "in").unchanged == 1
    assert snapshot(folder) == before
    assert {path.name for path in (tmp_path / "labs").iterdir()} == {"north", ".north.lock"}


def test_a_failed_write_leaves_the_dataset(tmp_path, prepare, monkeypatch):
    prepare(deliver(tmp_path / "in", {"a": 1}))
    before = snapshot(tmp_path / "labs")

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(ingest, "write_manifest", fail)
    with pytest.raises(OSError, match="no space"):
        prepare(deliver(tmp_path / "more", {"b": 2}))
    assert snapshot(tmp_path / "labs") == before


def test_an_image_that_changes_while_it_is_taken_over(tmp_path, prepare):
    source = deliver(tmp_path / "in", {"a": 1, "b": 2})

    def overwrite(done, total):
        if done == total:
            save(source / "images" / "a.png", noise(5))

    with pytest.raises(LabError, match=r"a.png: expected the same image as a moment ago"):
        prepare(source, progress=overwrite)
    assert not (tmp_path / "labs" / "north").exists()


def test_two_deliveries_at_once_are_both_taken(tmp_path, prepare):
    sources = [deliver(tmp_path / f"in{n}", {f"i{n}_{k}": 10 * n + k for k in range(4)}) for n in range(4)]
    threads = [threading.Thread(target=prepare, args=(source,)) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(open_lab_dataset(tmp_path / "labs" / "north").rows) == 16
