import os
import re

import numpy as np
import pytest
from PIL import Image

from microseg.annotations.classes import LabelClasses
from microseg.datasets import listing
from microseg.datasets.checks import CheckedImage, check_images, check_pair
from microseg.datasets.listing import list_files
from microseg.errors import LabError
from microseg.slides.images import image_digest

CLASSES = ("background", "gland")
LABELS = LabelClasses(CLASSES)


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
    """An incoming dataset of one valid image with its mask."""
    save(tmp_path / "images" / "good.png", noise(99))
    save(tmp_path / "masks" / "good.png", mask())
    return tmp_path


def check(source, classes=CLASSES, **options):
    """Accepted images, and the files with what was rejected."""
    files = list_files(source, LABELS)
    return check_images(files, LabelClasses(classes), **options), files


def reasons(source, classes=CLASSES):
    accepted, files = check(source, classes)
    assert "good" in [image.name for image in accepted]
    return {file.file: file.reason for file in files.rejected.values()}


def test_accepts_images_with_and_without_mask(source):
    save(source / "images" / "deep.ome.tif", noise(1))
    save(source / "images" / "Unlabelled.JPG", noise(2))
    save(source / "masks" / "DEEP.tif", mask())
    accepted, files = check(source)
    assert [(image.name, image.annotation and image.annotation.name) for image in accepted] == [
        ("Unlabelled", None),
        ("deep", "DEEP.tif"),
        ("good", "good.png"),
    ]
    assert (files.rejected, files.skipped) == ({}, [])
    assert accepted[2] == CheckedImage(
        "good",
        source / "images" / "good.png",
        source / "masks" / "good.png",
        width=32,
        height=24,
        mpp=None,
        sha256=image_digest(noise(99)),
        labels_sha256=image_digest(mask()),
    )


def test_progress_counts_every_image(source):
    for seed in range(5):
        save(source / "images" / f"{seed}.png", noise(seed))
    (source / "images" / "broken.png").write_bytes(b"broken")
    calls = []
    check(source, progress=lambda *call: calls.append(call))
    assert calls == [(done, 7) for done in range(1, 8)]


# --- the folder as a whole


def test_rejects_missing_or_empty_folders(tmp_path):
    with pytest.raises(LabError, match=r"none: expected the folder of a lab's images"):
        list_files(tmp_path / "none", LABELS)
    with pytest.raises(LabError, match="expected a folder images/"):
        list_files(tmp_path, LABELS)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / ".DS_Store").touch()
    with pytest.raises(LabError, match="images: expected images, found none"):
        list_files(tmp_path, LABELS)


def test_ignores_other_folders(source):
    (source / "test" / "images").mkdir(parents=True)
    (source / "test" / "images" / "broken.png").write_bytes(b"broken")
    (source / "notes.txt").write_text("notes")
    assert reasons(source) == {}


@pytest.mark.parametrize("name", [".DS_Store", "._good.png", "Thumbs.db", "desktop.ini", "~$good.png", ".cache/x.png"])
def test_skips_files_of_the_operating_system(source, name):
    path = source / "images" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"system")
    files = list_files(source, LABELS)
    assert (files.skipped, files.rejected) == ([f"images/{name}"], {})


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
        ("dangling link", "link to nothing"),
        ("pipe", "got a FIFO"),
        ("too small", "at least 16 pixels a side, got 32 x 15"),
    ],
)
def test_rejects_invalid_image_with_its_mask(source, kind, reason):
    broken(source, kind)
    save(source / "masks" / "bad.png", mask())
    rejected = reasons(source)
    assert rejected.keys() == {"images/bad.png", "masks/bad.png"}
    assert re.search(reason, rejected["images/bad.png"])
    assert not rejected["images/bad.png"].startswith(str(source))
    assert rejected["masks/bad.png"] == f"its image bad.png is rejected: {rejected['images/bad.png']}"


def test_rejects_invalid_mask_with_its_image(source):
    save(source / "images" / "bad.png", noise())
    save(source / "masks" / "bad.png", mask(2))
    rejected = reasons(source)
    assert rejected.keys() == {"images/bad.png", "masks/bad.png"}
    assert rejected["images/bad.png"] == f"its annotation bad.png is rejected: {rejected['masks/bad.png']}"


def test_rejects_mask_without_image(source):
    save(source / "masks" / "alone.png", mask())
    assert "expected an image of the same name" in reasons(source)["masks/alone.png"]


@pytest.mark.parametrize("name", ["notes.txt", "noending"])
@pytest.mark.parametrize("folder", ["images", "masks"])
def test_rejects_other_file_types(source, folder, name):
    (source / folder / name).write_text("x")
    assert "expected .png, .jpg" in reasons(source)[f"{folder}/{name}"]


def test_lists_slides_apart_with_all_their_files(source):
    for name in ("a.svs", "b.mrxs", "b/Slidedat.ini", "b/Data0000.dat", "c.vms", "sub/D.NDPI"):
        (source / "images" / name).parent.mkdir(exist_ok=True)
        (source / "images" / name).write_bytes(b"slide")
    (source / "images" / "c.vms").write_text("ImageFile=c.jpg\n")
    save(source / "images" / "c.jpg", noise(1))  # a part of the slide, though it can be read as an image
    save(source / "images" / "d.jpg", noise(2))
    (source / "annotations").mkdir()
    (source / "annotations" / "A.geojson").write_text("{}")
    accepted, files = check(source)
    assert [image.name for image in accepted] == ["d", "good"]
    listed = [(files.path_of(slide), annotation and files.path_of(annotation)) for slide, annotation in files.slides]
    assert listed == [("images/a.svs", "annotations/A.geojson"), ("images/b.mrxs", None), ("images/c.vms", None)]
    assert {file.file: file.reason[:40] for file in files.rejected.values()} == {
        "images/sub/D.NDPI": "expected files directly in images/, got "
    }


def test_rejects_slides_that_have_the_name_of_an_image(source):
    (source / "images" / "good.svs").write_bytes(b"slide")
    _, files = check(source)
    assert "expected a unique name" in files.rejected["images/good.svs"].reason
    assert "expected a unique name" in files.rejected["images/good.png"].reason


@pytest.mark.usefixtures("same_process")
def test_lists_large_tiff_as_slide(source, monkeypatch):
    monkeypatch.setattr(listing, "SLIDE_MEGAPIXELS", 0.1)
    for name, side in (("large.tif", 320), ("wide.png", 320), ("small.tif", 300)):
        save(source / "images" / name, noise(1, side, side))
    files = list_files(source, LABELS)
    assert [path.name for path, _ in files.slides] == ["large.tif"]
    assert sorted(path.name for path, _ in files.pairs) == ["good.png", "small.tif", "wide.png"]


def test_rejects_files_in_subfolders(source):
    save(source / "images" / "patient 1" / "a.png", noise())
    assert "directly in images/" in reasons(source)["images/patient 1/a.png"]


def test_rejects_unprintable_names(source):
    save(source / "images" / "line\nbreak.png", noise(1))
    (source / "images" / os.fsdecode(b"latin-\xe9.png")).write_bytes((source / "images" / "good.png").read_bytes())
    rejected = reasons(source)
    assert len(rejected) == 2
    assert all("printable Unicode" in reason for reason in rejected.values())
    "".join(rejected).encode()  # what is reported can be


# --- names and content twice


@pytest.mark.parametrize("other", ["x.jpg", "X.png", "x.ome.tif"])
def test_rejects_both_files_of_the_same_name(source, other):
    save(source / "images" / "x.png", noise(1))
    save(source / "images" / other, noise(2))
    save(source / "masks" / "x.png", mask())
    rejected = reasons(source)
    assert rejected.keys() == {"images/x.png", f"images/{other}", "masks/x.png"}
    assert f"the same as {other}" in rejected["images/x.png"]
    assert "the same as x.png" in rejected[f"images/{other}"]


def test_rejects_names_that_differ_by_the_encoding_of_an_accent(source):
    save(source / "images" / "\u00e9.png", noise(1))
    save(source / "images" / "e\u0301.png", noise(2))
    assert len(reasons(source)) == 2


def test_rejects_two_masks_for_one_image(source):
    save(source / "images" / "x.png", noise(1))
    save(source / "masks" / "x.png", mask())
    save(source / "masks" / "x.tif", mask())
    rejected = reasons(source)
    assert rejected.keys() == {"images/x.png", "masks/x.png", "masks/x.tif"}
    assert "expected one annotation, got x.png and x.tif" in rejected["images/x.png"]


def test_rejects_two_images_and_two_masks_of_one_name(source):
    for folder, array in (("images", noise(1)), ("masks", mask())):
        save(source / folder / "x.png", array)
        save(source / folder / "x.tif", array)
    assert reasons(source).keys() == {"images/x.png", "images/x.tif", "masks/x.png", "masks/x.tif"}


def test_duplicate_content_keeps_the_first(source):
    save(source / "images" / "a.png", noise(1))
    save(source / "images" / "b.tif", noise(1))
    assert reasons(source) == {"images/b.tif": "expected each image once, got the same content as a.png. Remove one."}


def test_duplicate_content_keeps_the_labelled_image(source):
    save(source / "images" / "a.png", noise(1))
    save(source / "images" / "b.png", noise(1))
    save(source / "masks" / "b.png", mask())
    assert reasons(source) == {"images/a.png": "expected each image once, got the same content as b.png. Remove one."}


# --- one image and its annotation


@pytest.fixture
def image(tmp_path):
    return save(tmp_path / "x.png", noise())


def test_checked_image_states_size_and_digests(image, tmp_path):
    file = save(tmp_path / "masks" / "x.tif", mask())
    assert check_pair(image, file, LABELS) == CheckedImage(
        "x",
        image,
        file,
        width=32,
        height=24,
        mpp=None,
        sha256=image_digest(noise()),
        labels_sha256=image_digest(mask()),
    )


def test_reads_pixel_size_of_the_file(tmp_path):
    checked = check_pair(save(tmp_path / "sized.png", noise(1), dpi=(50_800, 50_800)), None, LABELS)
    assert checked.mpp == pytest.approx(0.5, rel=1e-3)


def test_rejects_image_below_smallest_size(tmp_path):
    small = save(tmp_path / "small.png", noise(height=16, width=16))
    assert isinstance(check_pair(small, None, LABELS), CheckedImage)
    smaller = save(tmp_path / "smaller.png", noise(height=16, width=15))
    assert "at least 16 pixels a side, got 15 x 16" in check_pair(smaller, None, LABELS)[smaller]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (mask(height=23), r"expected the image's size 32 x 24, got 32 x 23"),
        (mask(2), r"0 = background, 1 = gland; 255 = ignore\), got 2\. .*name every class in lab.yaml"),
        (mask(255), r"got only 0 and 255\. 255 means 'ignore'.*write 1 where it is gland"),
        (np.full((24, 32), 255, np.uint8), "got only 255"),
        (noise(), "got colors"),
        (b"broken", "cannot be read"),
        (b"", "empty file"),
    ],
)
def test_rejects_mask_with_other_size_or_values(image, tmp_path, wrong, reason):
    file = tmp_path / "masks" / "mask.png"
    file.parent.mkdir()
    if isinstance(wrong, bytes):
        file.write_bytes(wrong)
    else:
        save(file, wrong)
    rejected = check_pair(image, file, LABELS)
    assert rejected.keys() == {image, file}
    assert re.search(reason, rejected[file])
    assert rejected[image] == f"its annotation mask.png is rejected: {rejected[file]}"


def test_accepts_masks_with_ignored_or_no_foreground(image, tmp_path):
    partly = mask()
    partly[20:] = 255
    for fine in (mask(0), partly):
        assert isinstance(check_pair(image, save(tmp_path / "masks" / "mask.png", fine), LABELS), CheckedImage)


def test_accepts_every_named_class(image, tmp_path):
    file = save(tmp_path / "masks" / "mask.png", mask(2))
    assert isinstance(check_pair(image, file, LabelClasses((*CLASSES, "nerve"))), CheckedImage)


def test_keeps_bytes_of_png_without_metadata_only(tmp_path):
    exif = Image.Exif()
    exif[271] = "camera"
    rgba = np.dstack([noise(), np.full((24, 32), 255, np.uint8)])
    files = {
        "bare": save(tmp_path / "bare.png", noise()),
        "bmp": save(tmp_path / "bmp.png", noise(), format="BMP"),
        "exif": save(tmp_path / "exif.png", noise(), exif=exif),
        "gray": save(tmp_path / "gray.png", noise()[:, :, 0]),
        "profile": save(tmp_path / "profile.png", noise(), icc_profile=b"profile"),
        "rgba": save(tmp_path / "rgba.png", rgba),
        "key": save(tmp_path / "key.png", noise(), transparency=(1, 2, 3)),
    }
    kept = []
    for file in files.values():
        check_pair(file, None, LABELS, lambda image, _pixels, png, _labels: kept.append((image.name, png)))
    assert [name for name, png in kept if png is not None] == ["bare"]
    assert kept[0][1] == files["bare"].read_bytes()
