import csv
import itertools
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from microseg.annotations import index_masks
from microseg.annotations.index_masks import read_mask
from microseg.datasets import dataset_folder
from microseg.datasets import ingest as module
from microseg.datasets.dataset import open_lab_dataset
from microseg.datasets.dataset_folder import lab_lock
from microseg.datasets.ingest import IngestResult, ingest_lab
from microseg.datasets.lab import read_lab_metadata
from microseg.errors import LabError, NoSpaceError
from microseg.slides import images, parts
from microseg.slides.images import image_digest, read_image

METADATA = "lab: north\nstain: H&E\nclasses: [background, gland]\n"


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


def write_incoming(folder, images, *, masks=(), metadata=METADATA, table=None):
    """An incoming dataset of images given as name -> seed."""
    for name, seed in dict(images).items():
        save(folder / "images" / f"{name}.png", noise(seed))
    for name in masks:
        save(folder / "masks" / f"{name}.png", mask())
    folder.mkdir(exist_ok=True)
    (folder / "lab.yaml").write_text(metadata)
    if table is not None:
        (folder / "images.csv").write_text(table)
    return folder


@pytest.fixture
def ingest(tmp_path):
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


# --- a new dataset


def test_ingest_creates_a_dataset(tmp_path, ingest):
    source = write_incoming(tmp_path / "in", {"a": 1, "b": 2, "c": 3}, masks="ab", metadata=f"{METADATA}mpp: 0.5\n")
    save(source / "test" / "images" / "t.png", noise(9))
    (source / "images" / ".DS_Store").touch()
    before = snapshot(source)
    calls = []
    result = ingest(source, progress=lambda *call: calls.append(call))
    assert snapshot(source) == before
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert result == IngestResult(
        lab="north",
        folder=tmp_path / "labs" / "north",
        images=3,
        labelled=2,
        added=3,
        relabelled=0,
        unchanged=0,
        rejected=(),
        skipped=("images/.DS_Store",),
        quarantine=None,
    )
    assert result.rejections == ""
    lab = open_lab_dataset(result.folder)
    assert sorted(path.name for path in result.folder.rglob("*.*")) == [
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


def test_converts_every_format_to_png(tmp_path, ingest):
    source = write_incoming(tmp_path / "in", {"plain": 1})
    save(source / "images" / "gray.bmp", noise(2)[:, :, 0])
    tifffile.imwrite(source / "images" / "deep.ome.tif", noise(3).astype(np.uint16) * 257, photometric="rgb")
    save(source / "images" / "secret.png", noise(4), exif=exif_with("patient"))
    palette = Image.fromarray(mask(), mode="P")
    palette.putpalette([0, 0, 0, 255, 0, 0])
    (source / "masks").mkdir()
    palette.save(source / "masks" / "gray.png")
    folder = ingest(source).folder
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


def test_splits_by_group_and_reads_pixel_sizes(tmp_path, ingest):
    names = {f"p{patient}_{i}": 10 * patient + i for patient in range(6) for i in range(3)}
    table = "file,group,mpp\n" + "".join(f"{name}.png,{name[:2]},\n" for name in names).replace(
        "p0_0.png,p0,", "p0_0.png,p0,0.25"
    )
    source = write_incoming(tmp_path / "in", names, metadata=f"{METADATA}mpp: 0.5\n", table=table)
    lab = open_lab_dataset(ingest(source, val_fraction=0.3, test_fraction=0.3, seed=1).folder)
    splits = {}
    for row in lab.rows:
        splits.setdefault(row.group, set()).add(row.split)
        assert row.mpp == (0.25 if row.image == "images/p0_0.png" else 0.5)
    assert splits.keys() == {f"p{i}" for i in range(6)}
    assert all(len(found) == 1 for found in splits.values())
    assert set.union(*splits.values()) == {"train", "val", "test"}


def test_uses_pixel_size_of_the_file_where_the_lab_states_none(tmp_path, ingest):
    source = write_incoming(tmp_path / "in", {"a": 1})
    tifffile.imwrite(
        source / "images" / "b.tif", noise(2), photometric="rgb", resolution=(40_000, 40_000), resolutionunit=3
    )
    assert [row.mpp for row in open_lab_dataset(ingest(source).folder).rows] == [None, 0.25]


def test_few_masks_are_in_every_split(tmp_path, ingest):
    names = {f"i{n:02}": n for n in range(20)}
    lab = open_lab_dataset(ingest(write_incoming(tmp_path / "in", names, masks=["i03", "i07", "i11"])).folder)
    assert {row.split for row in lab.select(labelled=True)} == {"train", "val", "test"}


# --- rejected files


def test_copies_rejected_files_to_quarantine(tmp_path, ingest):
    source = write_incoming(tmp_path / "in", {"a": 1, "b": 2, "tiny": 3}, masks=["b", "alone"])
    save(source / "images" / "tiny.png", noise(3, height=8))
    save(source / "masks" / "b.png", mask(7))
    (source / "images" / "empty.png").touch()
    before = snapshot(source)
    result = ingest(source)
    rejected = {"images/b.png", "images/empty.png", "images/tiny.png", "masks/alone.png", "masks/b.png"}
    assert {file.file for file in result.rejected} == rejected
    assert reasons(tmp_path) == {file.file: file.reason for file in result.rejected}
    for file in rejected:
        assert (tmp_path / "quarantine" / "north" / file).read_bytes() == (source / file).read_bytes()
    assert [row.image for row in open_lab_dataset(result.folder).rows] == ["images/a.png"]
    assert snapshot(source) == before


def test_rejecting_all_files_keeps_the_dataset(tmp_path, ingest):
    ingest(write_incoming(tmp_path / "in", {"a": 1}))
    before = snapshot(tmp_path / "labs")
    source = write_incoming(tmp_path / "second", {})
    (source / "images").mkdir()
    (source / "images" / "broken.png").write_bytes(b"broken")
    with pytest.raises(LabError, match=r"Files rejected: 1; reasons: .*quarantine.*images/broken.png: "):
        ingest(source)
    assert snapshot(tmp_path / "labs") == before
    assert reasons(tmp_path).keys() == {"images/broken.png"}


def test_rejects_and_counts_slides_beside_images(tmp_path, ingest):
    source = write_incoming(tmp_path / "in", {"a": 1})
    (source / "images" / "b.svs").write_bytes(b"slide")
    (source / "images.csv").write_text("file,group\na.png,b\nb.svs,b\n")
    result = ingest(source)
    assert (result.images, len(result.rejected)) == (1, 1)
    kept = tmp_path / "quarantine" / "north" / "reasons.csv"
    assert result.rejections == f"Files rejected: 1 (whole slides: 1); reasons: {kept}."
    assert "expected a slide (.svs), got a file that no slide reader" in reasons(tmp_path)["images/b.svs"]
    assert (tmp_path / "quarantine" / "north" / "images" / "b.svs").read_bytes() == b"slide"


def test_raises_where_there_are_only_slides(tmp_path, ingest):
    source = write_incoming(tmp_path / "in", {})
    (source / "images").mkdir()
    for name in ("a.svs", "b.ndpi", "c.txt"):
        (source / "images" / name).write_bytes(b"slide")
    with pytest.raises(LabError, match=r"Files rejected: 3 \(whole slides: 2\).*no slide reader recognizes"):
        ingest(source)
    assert reasons(tmp_path).keys() == {"images/a.svs", "images/b.ndpi", "images/c.txt"}


def test_rejects_binary_masks_of_0_and_255(tmp_path, ingest):
    source = write_incoming(tmp_path / "in", {"a": 1}, metadata=f"{METADATA}labelled: true\n")
    save(source / "masks" / "a.png", mask(255))
    with pytest.raises(LabError, match="write 1 where it is gland"):
        ingest(source)
    assert not (tmp_path / "labs" / "north").exists()


@pytest.mark.parametrize(
    ("metadata", "masks", "message"),
    [
        ("labelled: true", "", "expected masks"),
        ("labelled: false", "a", "expected no masks"),
        ("labelled: true", "x", "expected masks"),
    ],
)
def test_raises_where_labelled_contradicts_the_masks(tmp_path, ingest, metadata, masks, message):
    source = write_incoming(tmp_path / "in", {"a": 1}, masks=masks, metadata=f"{METADATA}{metadata}\n")
    with pytest.raises(LabError, match=message):
        ingest(source)
    assert not (tmp_path / "labs" / "north").exists()


def test_raises_without_folder_metadata_or_images(tmp_path, ingest):
    with pytest.raises(LabError, match="expected the folder of a lab's images"):
        ingest(tmp_path / "none")
    (tmp_path / "in").mkdir()
    with pytest.raises(LabError, match="classes: \\[background, gland\\]"):  # the template
        ingest(tmp_path / "in")
    (tmp_path / "in" / "lab.yaml").write_text(METADATA)
    with pytest.raises(LabError, match="expected a folder images/"):
        ingest(tmp_path / "in")
    (tmp_path / "in" / "images").mkdir()
    with pytest.raises(LabError, match="expected images, found none"):
        ingest(tmp_path / "in")
    assert not (tmp_path / "labs").exists()


@pytest.mark.parametrize("name", ["../north", "North", "a/b", "", ".hidden"])
def test_rejects_invalid_lab_names(tmp_path, ingest, name):
    source = write_incoming(tmp_path / "in", {"a": 1}, metadata=METADATA.replace("north", f"'{name}'"))
    with pytest.raises(LabError, match="lower-case letters"):
        ingest(source)
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


def test_ingests_under_the_name_in_the_metadata(tmp_path, ingest):
    source = write_incoming(tmp_path / "in", {"a": 1}, metadata=METADATA.replace("lab: north\n", ""))
    metadata = read_lab_metadata(source, lab="south")
    assert ingest(source, metadata=metadata).folder == tmp_path / "labs" / "south"


def test_rejects_the_dataset_itself(tmp_path, ingest):
    folder = ingest(write_incoming(tmp_path / "in", {"a": 1})).folder
    with pytest.raises(LabError, match="got the dataset itself"):
        ingest(folder)


def test_rejects_image_table_with_unknown_files(tmp_path, ingest):
    source = write_incoming(tmp_path / "in", {"a": 1}, table="file,group\na.png,p\nb.png,p\n")
    with pytest.raises(LabError, match=r"images.csv: expected files in images/, got b.png"):
        ingest(source)
    (source / "images" / "b.png").write_bytes(b"broken")  # listed, present, rejected
    assert ingest(source).images == 1


# --- adding to a dataset


def test_ingesting_again_changes_nothing(tmp_path, ingest):
    source = write_incoming(tmp_path / "in", {"a": 1, "b": 2}, masks="a")
    ingest(source)
    before = snapshot(tmp_path / "labs")
    result = ingest(source)
    assert (result.images, result.added, result.unchanged) == (2, 0, 2)
    assert snapshot(tmp_path / "labs") == before


def test_adds_images_to_a_dataset(tmp_path, ingest):
    first = ingest(write_incoming(tmp_path / "in", {f"a{n}": n for n in range(10)}, masks=[f"a{n}" for n in range(5)]))
    splits = {row.image: row.split for row in open_lab_dataset(first.folder).rows}
    files = snapshot(first.folder)
    second = ingest(write_incoming(tmp_path / "more", {f"b{n}": 100 + n for n in range(10)}))
    assert (second.images, second.labelled, second.added, second.unchanged) == (20, 5, 10, 0)
    lab = open_lab_dataset(second.folder)
    assert splits.items() <= {row.image: row.split for row in lab.rows}.items()
    later = snapshot(second.folder)
    assert all(later[name] == content for name, content in files.items() if name.endswith(".png"))
    assert {path.name for path in (tmp_path / "labs").iterdir()} == {"north", ".north.lock"}


def test_rejects_name_or_content_of_the_dataset(tmp_path, ingest):
    ingest(write_incoming(tmp_path / "in", {"a": 1, "b": 2}))
    source = write_incoming(tmp_path / "more", {"A": 7, "copy": 2, "new": 8}, masks=["copy"])
    result = ingest(source)
    assert result.added == 1
    assert {file.file: file.reason for file in result.rejected} == reasons(tmp_path)
    rejected = reasons(tmp_path)
    assert rejected.keys() == {"images/A.png", "images/copy.png", "masks/copy.png"}
    assert "that of images/a.png, which has other content" in rejected["images/A.png"]
    assert "content of images/b.png" in rejected["images/copy.png"]
    assert (tmp_path / "quarantine" / "north" / "images" / "A.png").exists()
    assert np.array_equal(read_image(result.folder / "images" / "a.png"), noise(1))


def test_adds_masks_later(tmp_path, ingest):
    first = ingest(write_incoming(tmp_path / "in", {"a": 1, "b": 2, "c": 3}, metadata=f"{METADATA}labelled: false\n"))
    splits = [row.split for row in open_lab_dataset(first.folder).rows]
    source = write_incoming(tmp_path / "more", {"a": 1}, masks="a", metadata=f"{METADATA}labelled: true\n")
    result = ingest(source)
    assert (result.images, result.labelled, result.added, result.relabelled, result.unchanged) == (
        3,
        1,
        0,
        1,
        0,
    )
    lab = open_lab_dataset(result.folder)
    assert lab.metadata.labelled
    assert [row.split for row in lab.rows] == ["train", *splits[1:]]  # its first labels: it is assigned again
    assert np.array_equal(read_mask(lab.mask_path(lab.rows[0])), mask())
    assert ingest(source).unchanged == 1
    unlabelled = write_incoming(tmp_path / "third", {"d": 4}, metadata=f"{METADATA}labelled: false\n")
    assert open_lab_dataset(ingest(unlabelled).folder).metadata.labelled


def test_rejects_another_mask_for_the_same_image(tmp_path, ingest):
    ingest(write_incoming(tmp_path / "in", {"a": 1}, masks="a"))
    source = write_incoming(tmp_path / "more", {"a": 1, "b": 2})
    save(source / "masks" / "a.png", mask()[::-1])
    result = ingest(source)
    assert {file.file for file in result.rejected} == {"images/a.png", "masks/a.png"}
    assert "expected the mask that the dataset has" in reasons(tmp_path)["images/a.png"]
    assert np.array_equal(read_mask(result.folder / "masks" / "a.png"), mask())


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (METADATA.replace("H&E", "PAS"), "expected stain H&E as in the dataset, got PAS"),
        (METADATA.replace("gland", "nucleus"), "expected classes .*gland.* got .*nucleus"),
        (f"{METADATA}mpp: 0.25\n", "expected mpp 0.5 as in the dataset, got 0.25.*images.csv"),
    ],
)
def test_rejects_metadata_that_contradicts_the_dataset(tmp_path, ingest, metadata, message):
    ingest(write_incoming(tmp_path / "in", {"a": 1}, metadata=f"{METADATA}mpp: 0.5\n"))
    before = snapshot(tmp_path / "labs")
    with pytest.raises(LabError, match=message):
        ingest(write_incoming(tmp_path / "more", {"b": 2}, metadata=metadata))
    assert snapshot(tmp_path / "labs") == before


def test_adds_metadata_later(tmp_path, ingest):
    ingest(write_incoming(tmp_path / "in", {"a": 1, "b": 2}))
    source = write_incoming(
        tmp_path / "more", {"c": 3}, metadata=f"{METADATA}mpp: 0.5\ntissue: colon\n", table="file,mpp\na,0.25\n"
    )
    lab = open_lab_dataset(ingest(source).folder)
    assert [row.mpp for row in lab.rows] == [0.25, 0.5, 0.5]
    assert (lab.metadata.mpp, lab.metadata.tissue) == (0.5, "colon")
    plain = open_lab_dataset(ingest(write_incoming(tmp_path / "third", {"d": 4})).folder)
    assert (plain.metadata.mpp, plain.rows[3].mpp) == (0.5, 0.5)


def test_rejects_another_group_for_an_image(tmp_path, ingest):
    ingest(write_incoming(tmp_path / "in", {"a": 1}, table="file,group\na.png,p1\n"))
    with pytest.raises(LabError, match=r"expected group 'p1' for a\.png as in the dataset, got 'p2'"):
        ingest(write_incoming(tmp_path / "more", {"a": 1, "b": 2}, table="file,group\na.png,p2\nb.png,p2\n"))
    later = ingest(write_incoming(tmp_path / "more", {"b": 2}, table="file,group\nb.png,p1\n"))
    assert len({row.split for row in open_lab_dataset(later.folder).rows}) == 1


# --- killed processes

CODE = Path(module.__file__).parents[2]
KILLED = """
import os, pkgutil, sys
from pathlib import Path
from microseg.datasets.ingest import ingest_lab
owner, step = pkgutil.resolve_name(sys.argv[1]), sys.argv[2]
original = getattr(owner, step)
count = 0
def dying(*arguments, **options):
    global count
    count += 1
    if count == int(sys.argv[3]):
        os._exit(9)
    return original(*arguments, **options)
setattr(owner, step, dying)
ingest_lab(*map(Path, sys.argv[4:7]))
"""


@pytest.mark.parametrize(
    ("owner", "step", "call"),
    [
        ("microseg.datasets.ingest", "_stage", 3),
        ("microseg.datasets.ingest", "quarantine_files", 1),
        ("microseg.datasets.dataset_folder", "write_manifest", 1),
        ("pathlib:Path", "rename", 1),
        ("pathlib:Path", "rename", 2),
    ],
)
def test_killed_process_leaves_the_old_dataset_or_the_next_one_restores_it(tmp_path, ingest, owner, step, call):
    first = ingest(write_incoming(tmp_path / "in", {"a": 1, "b": 2}, masks="a"))
    before = snapshot(first.folder)
    more = write_incoming(tmp_path / "more", {f"n{i}": 10 + i for i in range(4)})
    (more / "images" / "broken.png").write_bytes(b"broken")
    folders = [str(tmp_path / name) for name in ("more", "labs", "quarantine")]
    command = [sys.executable, "-c", KILLED, owner, step, str(call), *folders]
    assert subprocess.run(command, check=False, cwd=CODE).returncode == 9
    if (step, call) == ("rename", 2):  # between the two renames there is none, until the next call
        assert not first.folder.exists()
        with lab_lock(tmp_path / "labs", "north"):
            assert snapshot(first.folder) == before
    assert snapshot(first.folder) == before
    result = ingest(more)
    assert (result.images, result.added, len(result.rejected)) == (6, 4, 1)
    assert {path.name for path in (tmp_path / "labs").iterdir()} == {"north", ".north.lock"}


def test_failed_write_keeps_the_dataset(tmp_path, ingest, monkeypatch):
    ingest(write_incoming(tmp_path / "in", {"a": 1}))
    before = snapshot(tmp_path / "labs")

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(dataset_folder, "write_manifest", fail)
    with pytest.raises(OSError, match="no space"):
        ingest(write_incoming(tmp_path / "more", {"b": 2}))
    assert snapshot(tmp_path / "labs") == before


@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_writes_the_pixels_that_were_checked_when_files_change_afterwards(tmp_path, ingest, suffix):
    source = write_incoming(tmp_path / "in", {"b": 2}, masks="b")
    save(source / "images" / f"a.{suffix}", noise(1))
    save(source / "masks" / "a.png", mask())

    def overwrite(done, total):
        if done == total:
            save(source / "images" / f"a.{suffix}", noise(5))
            save(source / "masks" / "a.png", mask(0))

    lab = open_lab_dataset(ingest(source, progress=overwrite).folder)
    assert np.array_equal(read_image(lab.image_path(lab.rows[0])), noise(1))
    assert lab.rows[0].sha256 == image_digest(noise(1))
    assert np.array_equal(read_mask(lab.mask_path(lab.rows[0])), mask())


@pytest.mark.usefixtures("same_process")
def test_decodes_each_image_and_reads_lab_yaml_once(tmp_path, ingest, monkeypatch):
    source = write_incoming(tmp_path / "in", {"a": 1, "b": 2}, masks="a")
    save(source / "images" / "c.bmp", noise(3))
    decoded, opened = [], []
    original, plain, read = images.decode, images.read_plain_png, module.read_lab_metadata

    def decode(path, content=None):
        decoded.append("/".join(path.parts[-2:]))
        return original(path, content)

    def read_plain_png(path, content=None):
        if (found := plain(path, content)) is not None:
            decoded.append("/".join(path.parts[-2:]))
        return found

    monkeypatch.setattr(images, "read_plain_png", read_plain_png)
    monkeypatch.setattr(images, "decode", decode)
    monkeypatch.setattr(index_masks, "decode", decode)
    monkeypatch.setattr(
        module, "read_lab_metadata", lambda folder, **options: opened.append(folder) or read(folder, **options)
    )
    ingest(source)
    assert sorted(decoded) == ["images/a.png", "images/b.png", "images/c.bmp", "masks/a.png"]
    assert opened == [source]
    ingest(source, metadata=read(source))
    assert opened == [source]


def test_concurrent_ingests_are_all_added(tmp_path, ingest):
    sources = [write_incoming(tmp_path / f"in{n}", {f"i{n}_{k}": 10 * n + k for k in range(4)}) for n in range(4)]
    threads = [threading.Thread(target=ingest, args=(source,)) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(open_lab_dataset(tmp_path / "labs" / "north").rows) == 16


# --- links out of the delivery, FIFOs, full disks


def link_to(path, target):
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def test_links_out_of_the_delivery_are_rejected_and_never_copied(tmp_path, ingest):
    source = write_incoming(tmp_path / "source", {"a": 1, "b": 2}, masks=["a", "b"])
    outside = save(tmp_path / "outside" / "c.png", noise(3))
    link_to(source / "images" / "c.png", outside)
    link_to(source / "images" / "d.svs", outside)
    link_to(source / "masks" / "b.png", outside)
    link_to(source / "images" / "again.png", "a.png")
    os.mkfifo(source / "images" / "e.png")
    result = ingest(source)
    found = reasons(tmp_path)
    assert set(found) == {f"images/{name}" for name in ("again.png", "b.png", "c.png", "d.svs", "e.png")} | {
        "masks/b.png"
    }
    assert all("link to somewhere else" in found[f"images/{name}"] for name in ("c.png", "d.svs"))
    assert "FIFO" in found["images/e.png"]
    assert result.images == 1
    content = outside.read_bytes()
    assert not any(path.read_bytes() == content for path in (tmp_path / "quarantine").rglob("*") if path.is_file())
    assert ingest(source, allowed_roots=[tmp_path / "outside"]).images == 2


def test_folders_of_slides_that_lead_out_of_the_delivery_are_not_listed(tmp_path, ingest, monkeypatch):
    source, outside = write_incoming(tmp_path / "source", {"a": 1}), tmp_path / "outside"
    outside.mkdir()
    for name in (".zgroup", "secret.dat"):
        (outside / name).write_bytes(b"x")
    (source / "images" / "b.zarr").symlink_to(outside)
    (source / "images" / "c").symlink_to(outside)
    (source / "images" / "c.mrxs").write_bytes(b"x")
    (source / "images" / "d").symlink_to(outside)
    listed = []
    monkeypatch.setattr(parts, "_files_below", lambda folder: listed.append(folder) or [])
    assert ingest(source).images == 1
    found = reasons(tmp_path)
    assert set(found) == {f"images/{name}" for name in ("b.zarr", "c", "c.mrxs", "d")}
    assert all("link to somewhere else" in reason and "secret" not in reason for reason in found.values())
    assert listed == []


@pytest.mark.parametrize("name", ["lab.yaml", "images.csv"])
@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_a_list_that_is_no_file_of_the_delivery_is_refused_unread(tmp_path, ingest, name, kind):
    source = write_incoming(tmp_path / "source", {"a": 1}, table="file,group\na.png,1\n")
    secret = tmp_path / "secret"
    secret.write_text("password: hunter2\n")
    (source / name).unlink()
    if kind == "link":
        (source / name).symlink_to(secret)
    else:
        os.mkfifo(source / name)
    with pytest.raises(LabError, match="somewhere else" if kind == "link" else "FIFO") as caught:
        ingest(source)
    assert "password" not in str(caught.value)


@pytest.mark.parametrize("full_at", [1, 2, 3, 4])
def test_a_full_disk_leaves_the_dataset_as_it_was(tmp_path, ingest, monkeypatch, full_at):
    ingest(write_incoming(tmp_path / "first", {"a": 1}))
    before = snapshot(tmp_path / "labs" / "north")
    source = write_incoming(tmp_path / "second", {"b": 2, "c": 3})
    (source / "images" / "bad.png").write_bytes(b"x")
    usage, calls = shutil.disk_usage(tmp_path), itertools.count(1)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: usage._replace(free=0 if next(calls) >= full_at else usage.free)
    )
    with pytest.raises(NoSpaceError, match=r"the disk is full: it needs .*bytes"):
        ingest(source)
    assert snapshot(tmp_path / "labs" / "north") == before
    monkeypatch.undo()
    assert ingest(source).images == 3
    assert (tmp_path / "quarantine" / "north" / "images" / "bad.png").read_bytes() == b"x"
