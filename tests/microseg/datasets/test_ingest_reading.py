"""Pixels, geometry and labels of incoming datasets are taken as they are stated, or refused with what was found."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from microseg.annotations.index_masks import read_mask
from microseg.datasets.dataset import open_lab_dataset
from microseg.datasets.ingest import IngestResult, ingest_lab
from microseg.datasets.lab import read_lab_metadata
from microseg.errors import ImageReadError, LabError
from microseg.slides.images import read_image


def noise(seed: int = 0, size: int = 32) -> Any:
    return np.random.default_rng(seed).integers(90, 250, (size, size, 3)).astype(np.uint8)


def incoming(folder: Path, text: str = "") -> Path:
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    (folder / "lab.yaml").write_text(f"lab: north\nstain: H&E\nclasses: [background, gland]\n{text}")
    return folder


def ingest(source: Path) -> IngestResult:
    return ingest_lab(source, source.parent / "labs", source.parent / "quarantine")


def rejected(result: IngestResult) -> dict[str, str]:
    return {file.file: file.reason for file in result.rejected}


def write_pair(source: Path, name: str, seed: int, turned: int = 1, mask_turned: int = 1) -> None:
    for folder, array, orientation in (
        ("images", noise(seed), turned),
        ("masks", (noise(seed)[:, :, 0] > 200).astype(np.uint8), mask_turned),
    ):
        exif = Image.Exif()
        if orientation != 1:
            exif[274] = orientation
        Image.fromarray(array).save(source / folder / f"{name}.png", exif=exif)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_image_and_mask_are_turned_together_or_refused(tmp_path: Path, orientation: int) -> None:
    source = incoming(tmp_path / "in")
    write_pair(source, "both", 1, orientation, orientation)
    write_pair(source, "image", 2, orientation, 1)
    write_pair(source, "mask", 3, 1, orientation)
    result = ingest(source)
    assert rejected(result).keys() == {
        f"{part}/{name}.png" for part in ("images", "masks") for name in ("image", "mask")
    }
    assert f"expected the orientation of its image, {orientation} (" in rejected(result)["masks/image.png"]
    rows = open_lab_dataset(result.folder).rows
    assert [row.image for row in rows] == ["images/both.png"]
    image, mask = read_image(result.folder / "images/both.png"), read_mask(result.folder / "masks/both.png")
    np.testing.assert_array_equal(mask, image[:, :, 0] > 200)


def test_one_hot_pixel_decides_no_brightness_and_the_depth_is_kept_with_the_dataset(tmp_path: Path) -> None:
    source = incoming(tmp_path / "in")
    deep = noise(0).astype(np.uint16) * 16  # 12 bits
    hot = deep.copy()
    hot[5, 5] = 65_000
    dark = noise(1).astype(np.uint16)  # would be 8 bits alone
    for name, array in (("plain", deep), ("hot", hot), ("dark", dark)):
        tifffile.imwrite(source / f"images/{name}.tif", array, photometric="rgb")
    result = ingest(source)
    assert read_lab_metadata(result.folder).bit_depth == 12
    plain, other = (read_image(result.folder / f"images/{name}.png") for name in ("plain", "hot"))
    assert (plain != other).any(axis=2).sum() == 1
    np.testing.assert_array_equal(plain, np.rint(deep / 4095 * 255))
    assert read_image(result.folder / "images/dark.png").max() <= 16
    again = incoming(tmp_path / "next")
    tifffile.imwrite(again / "images/later.tif", noise(2).astype(np.uint16), photometric="rgb")
    tifffile.imwrite(again / "images/deeper.tif", noise(3).astype(np.uint16) * 200, photometric="rgb")
    result = ingest(again)
    assert read_image(result.folder / "images/later.png").max() <= 16
    assert "at most 12 bits" in rejected(result)["images/deeper.tif"]


def test_stated_bit_depth_is_used(tmp_path: Path) -> None:
    source = incoming(tmp_path / "in", "bit_depth: 14\n")
    tifffile.imwrite(source / "images/a.tif", noise(0).astype(np.uint16) * 16, photometric="rgb")
    result = ingest(source)
    np.testing.assert_array_equal(read_image(result.folder / "images/a.png"), np.rint(noise(0) * 16.0 / 16383 * 255))
    with pytest.raises(LabError, match="8, 10, 12, 14, 16, got 11"):
        ingest(incoming(tmp_path / "other", "bit_depth: 11\n"))


def test_pixel_sizes_of_files_and_lab_agree_or_the_list_decides(tmp_path: Path) -> None:
    source = incoming(tmp_path / "in", "mpp: 1.0\n")
    for number, name in enumerate(("same", "other", "listed", "none")):
        size = {"same": 1.01, "other": 0.25, "listed": 0.25}.get(name)
        tags: Any = {} if size is None else {"resolution": (1e4 / size, 1e4 / size), "resolutionunit": 3}
        tifffile.imwrite(source / f"images/{name}.tif", noise(number), photometric="rgb", **tags)
    (source / "images.csv").write_text("file,mpp\nlisted.tif,0.5\n")
    (source / "raw").mkdir()
    result = ingest(source)
    assert {row.image: row.mpp for row in open_lab_dataset(result.folder).rows} == {
        "images/same.png": 1.0,
        "images/listed.png": 0.5,
        "images/none.png": 1.0,
    }
    assert "0.25 microns of the file and 1.0 of lab.yaml" in rejected(result)["images/other.tif"]
    assert result.notes == (
        "listed.tif: 0.5 microns per pixel of images.csv override 0.25 of the file",
        "raw/: not read",
    )


def test_misnamed_mask_does_not_leave_its_image_unlabelled(tmp_path: Path) -> None:
    source = incoming(tmp_path / "in")
    write_pair(source, "right", 1)
    for number, (image, mask) in enumerate((("x", "x_mask"), ("y", "y-labels"), ("z", "mask_z"), ("w", "w_cp_masks"))):
        Image.fromarray(noise(number + 5)).save(source / f"images/{image}.png")
        Image.fromarray(np.eye(32, dtype=np.uint8)).save(source / f"masks/{mask}.png")
    result = ingest(source)
    assert (result.images, result.labelled) == (1, 1)
    assert rejected(result)["masks/x_mask.png"] == (
        "expected the name of its image, x.png, got x_mask.png. Rename it to x.png."
    )
    assert len(result.rejected) == 8
    only = incoming(tmp_path / "foreign")
    Image.fromarray(noise(20)).save(only / "images/a.png")
    Image.fromarray(np.eye(32, dtype=np.uint8)).save(only / "masks/unrelated.png")
    with pytest.raises(LabError, match=r"with the names of images.*unrelated\.png.*labelled: false"):
        ingest(only)


SMOOTH = np.rint(np.hypot(*np.mgrid[-16:16, -16:16]).clip(4, 12) * 32 - 128).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        (SMOOTH, "smoothed edges.*nearest neighbor"),
        (np.eye(32, dtype=np.uint16) * 65535, "0..65535.*masks: binary"),
        (np.eye(32, dtype=np.uint8) * 255, "masks: binary"),
        (np.arange(1024, dtype=np.uint16).reshape(32, 32), "numbers of objects.*masks: instances"),
        ((np.arange(1024) // 32).astype(np.uint8).reshape(32, 32), "numbers of objects.*masks: instances"),
    ],
)
def test_message_of_a_mask_leads_to_its_declaration(tmp_path: Path, values: Any, advice: str) -> None:
    source = incoming(tmp_path / "in")
    write_pair(source, "right", 1)
    Image.fromarray(noise(2)).save(source / "images/a.png")
    Image.fromarray(values).save(source / "masks/a.png")
    reason = rejected(ingest(source))["masks/a.png"]
    assert re.search(advice, reason), reason


def test_mask_with_a_page_for_each_class_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "m.tif", np.zeros((2, 8, 8), np.uint8), photometric="minisblack", metadata=None)
    with pytest.raises(ImageReadError, match="one page with 0, 1, 2"):
        read_mask(tmp_path / "m.tif")
