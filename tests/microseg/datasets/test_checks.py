import os
import re

import numpy as np
import pytest
from PIL import Image

from microseg.datasets.checks import CheckedImage, RejectedFile, check_lab_files, count_slides
from microseg.errors import LabError
from microseg.slides import images
from microseg.slides.images import image_digest

CLASSES = ("background", "gland")


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


@pytest.fixture
def source(tmp_path):
    """A delivery of one good image with its mask."""
    save(tmp_path / "images" / "good.png", noise(99))
    save(tmp_path / "masks" / "good.png", mask())
    return tmp_path


def reasons(source, classes=CLASSES):
    check = check_lab_files(source, classes)
    assert "good" in [image.name for image in check.accepted]
    return {refusal.file: refusal.reason for refusal in check.refused}


def test_a_good_delivery(source):
    save(source / "images" / "deep.ome.tif", noise(1))
    save(source / "images" / "Unlabelled.JPG", noise(2))
    save(source / "masks" / "DEEP.tif", mask())
    check = check_lab_files(source, CLASSES)
    assert [(image.name, image.mask and image.mask.name, image.plain) for image in check.accepted] == [
        ("Unlabelled", None, False),
        ("deep", "DEEP.tif", False),
        ("good", "good.png", True),
    ]
    assert check.refused == check.skipped == ()
    assert check.accepted[2] == CheckedImage(
        "good",
        source / "images" / "good.png",
        source / "masks" / "good.png",
        width=32,
        height=24,
        mpp=None,
        sha256=image_digest(noise(99)),
        plain=True,
    )


def test_progress_counts_every_image(source):
    for seed in range(5):
        save(source / "images" / f"{seed}.png", noise(seed))
    (source / "images" / "broken.png").write_bytes(b"broken")
    calls = []
    check_lab_files(source, CLASSES, progress=lambda *call: calls.append(call))
    assert calls == [(done, 7) for done in range(1, 8)]


# --- the folder as a whole


def test_missing_folders(tmp_path):
    with pytest.raises(LabError, match=r"none: expected the folder of a lab's images"):
        check_lab_files(tmp_path / "none", CLASSES)
    with pytest.raises(LabError, match="expected a folder images/"):
        check_lab_files(tmp_path, CLASSES)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / ".DS_Store").touch()
    with pytest.raises(LabError, match="images: expected images, found none"):
        check_lab_files(tmp_path, CLASSES)


def test_only_images_and_masks_are_looked_at(source):
    (source / "test" / "images").mkdir(parents=True)
    (source / "test" / "images" / "broken.png").write_bytes(b"broken")
    (source / "notes.txt").write_text("notes")
    assert reasons(source) == {}


@pytest.mark.parametrize("name", [".DS_Store", "._good.png", "Thumbs.db", "desktop.ini", "~$good.png", ".cache/x.png"])
def test_files_of_the_operating_system_are_skipped(source, name):
    path = source / "images" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"system")
    check = check_lab_files(source, CLASSES)
    assert check.skipped == (f"images/{name}",)
    assert check.refused == ()


# --- single files


def broken(source, kind):
    path = source / "images" / "bad.png"
    if kind == "zero bytes":
        path.touch()
    elif kind == "text":
        path.write_text("not an image")
    elif kind == "truncated":
        content = save(path, noise()).read_bytes()
        path.write_bytes(content[: len(content) // 2])
    elif kind == "dangling link":
        path.symlink_to(source / "nowhere.png")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "too small":
        save(path, noise(height=15))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("zero bytes", r"empty file \(0 bytes\)"),
        ("text", "cannot be read"),
        ("truncated", "truncated"),
        ("dangling link", "found none"),
        ("pipe", "found none"),
        ("too small", "at least 16 pixels a side, got 32 x 15"),
    ],
)
def test_a_bad_image_is_refused_with_its_mask(source, kind, reason):
    broken(source, kind)
    save(source / "masks" / "bad.png", mask())
    refused = reasons(source)
    assert refused.keys() == {"images/bad.png", "masks/bad.png"}
    assert re.search(reason, refused["images/bad.png"])
    assert not refused["images/bad.png"].startswith(str(source))
    assert refused["masks/bad.png"] == f"its image bad.png is refused: {refused['images/bad.png']}"


def test_a_bad_mask_is_refused_with_its_image(source):
    save(source / "images" / "bad.png", noise())
    save(source / "masks" / "bad.png", mask(2))
    refused = reasons(source)
    assert refused.keys() == {"images/bad.png", "masks/bad.png"}
    assert refused["images/bad.png"] == f"its mask bad.png is refused: {refused['masks/bad.png']}"


def test_a_mask_without_image(source):
    save(source / "masks" / "alone.png", mask())
    assert "expected an image of the same name" in reasons(source)["masks/alone.png"]


@pytest.mark.parametrize("name", ["slide.svs", "notes.txt", "noending"])
@pytest.mark.parametrize("folder", ["images", "masks"])
def test_other_kinds_of_file(source, folder, name):
    (source / folder / name).write_text("x")
    assert "expected .png, .jpg" in reasons(source)[f"{folder}/{name}"]


def test_whole_slides_are_refused_with_all_their_files(source):
    for name in ("a.svs", "b.mrxs", "b/Slidedat.ini", "b/Data0000.dat", "c.vms", "sub/D.NDPI"):
        (source / "images" / name).parent.mkdir(exist_ok=True)
        (source / "images" / name).write_bytes(b"slide")
    (source / "images" / "c.vms").write_text("ImageFile=c.jpg\n")
    save(source / "images" / "c.jpg", noise(1))  # a part of the slide, though it can be read as an image
    save(source / "images" / "d.jpg", noise(2))
    check = check_lab_files(source, CLASSES)
    assert [image.name for image in check.accepted] == ["d", "good"]
    assert {refusal.file: refusal.slide for refusal in check.refused} == {
        "images/a.svs": "images/a.svs",
        "images/b.mrxs": "images/b.mrxs",
        "images/b/Data0000.dat": "images/b.mrxs",
        "images/b/Slidedat.ini": "images/b.mrxs",
        "images/c.jpg": "images/c.vms",
        "images/c.vms": "images/c.vms",
        "images/sub/D.NDPI": "images/sub/D.NDPI",
    }
    assert count_slides(check.refused) == 4
    refused = reasons(source)
    assert "got a whole slide (.svs). Export regions of it as PNG or TIFF into images/" in refused["images/a.svs"]
    assert "a part of the whole slide b.mrxs, which is refused too" in refused["images/b/Data0000.dat"]


def test_a_delivery_of_slides_alone(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.svs").write_bytes(b"slide")
    check = check_lab_files(tmp_path, CLASSES)
    assert (check.accepted, count_slides(check.refused)) == ((), 1)


def test_a_tiff_too_large_for_an_image_is_a_slide(source, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 24 * 32)
    for name in ("large.tif", "wide.png"):
        save(source / "images" / name, noise(1, 24, 33))
    (source / "images" / "broken.tif").write_bytes(b"II*\0")
    slides = {refusal.file: refusal.slide for refusal in check_lab_files(source, CLASSES).refused}
    assert slides == {"images/broken.tif": None, "images/large.tif": "images/large.tif", "images/wide.png": None}
    assert "Cut it into smaller regions" in reasons(source)["images/large.tif"]


def test_files_in_subfolders(source):
    save(source / "images" / "patient 1" / "a.png", noise())
    assert "directly in images/" in reasons(source)["images/patient 1/a.png"]


def test_names_that_cannot_be_written_down(source):
    save(source / "images" / "line\nbreak.png", noise(1))
    (source / "images" / os.fsdecode(b"latin-\xe9.png")).write_bytes((source / "images" / "good.png").read_bytes())
    refused = reasons(source)
    assert len(refused) == 2
    assert all("printable Unicode" in reason for reason in refused.values())
    "".join(refused).encode()  # what is reported can be


# --- names and content twice


@pytest.mark.parametrize("other", ["x.jpg", "X.png", "x.ome.tif"])
def test_one_name_twice_refuses_both(source, other):
    save(source / "images" / "x.png", noise(1))
    save(source / "images" / other, noise(2))
    save(source / "masks" / "x.png", mask())
    refused = reasons(source)
    assert refused.keys() == {"images/x.png", f"images/{other}", "masks/x.png"}
    assert f"the same as {other}" in refused["images/x.png"]
    assert "the same as x.png" in refused[f"images/{other}"]


def test_names_that_differ_by_the_writing_of_an_accent(source):
    save(source / "images" / "\u00e9.png", noise(1))
    save(source / "images" / "e\u0301.png", noise(2))
    assert len(reasons(source)) == 2


def test_two_masks_for_one_image(source):
    save(source / "images" / "x.png", noise(1))
    save(source / "masks" / "x.png", mask())
    save(source / "masks" / "x.tif", mask())
    refused = reasons(source)
    assert refused.keys() == {"images/x.png", "masks/x.png", "masks/x.tif"}
    assert "expected one mask, got x.png and x.tif" in refused["images/x.png"]


def test_two_images_and_two_masks_of_one_name_are_all_refused(source):
    for folder, array in (("images", noise(1)), ("masks", mask())):
        save(source / folder / "x.png", array)
        save(source / folder / "x.tif", array)
    assert reasons(source).keys() == {"images/x.png", "images/x.tif", "masks/x.png", "masks/x.tif"}


def test_the_same_content_twice_keeps_the_first(source):
    save(source / "images" / "a.png", noise(1))
    save(source / "images" / "b.tif", noise(1))
    assert reasons(source) == {"images/b.tif": "expected each image once, got the same content as a.png. Remove one."}


def test_the_same_content_twice_keeps_the_labelled_one(source):
    save(source / "images" / "a.png", noise(1))
    save(source / "images" / "b.png", noise(1))
    save(source / "masks" / "b.png", mask())
    assert reasons(source) == {"images/a.png": "expected each image once, got the same content as b.png. Remove one."}


def test_refusal_is_a_record():
    assert RejectedFile("images/a.png", "reason") == RejectedFile(file="images/a.png", reason="reason")
