import pytest

from microseg.datasets.dataset import ManifestRow, open_lab_dataset, write_manifest
from microseg.datasets.lab import LabMetadata, write_lab_metadata
from microseg.errors import LabError


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "north"
    for name in ("images/a.png", "images/b.png", "images/c.png", "masks/a.png", "masks/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    write_lab_metadata(folder, LabMetadata(lab="north", stain="H&E", classes=("background", "gland"), labelled=True))
    write_manifest(
        folder,
        [
            ManifestRow("images/a.png", "masks/a.png", "a", "train", 8, 8, None, "0" * 64),
            ManifestRow("images/b.png", None, "b", "train", 8, 8, None, "1" * 64),
            ManifestRow("images/c.png", "masks/c.png", "c", "test", 8, 8, None, "2" * 64),
        ],
    )
    return folder


def names(rows):
    return "".join(row.image[len("images/")] for row in rows)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({}, "abc"),
        ({"split": "train"}, "ab"),
        ({"split": "val"}, ""),
        ({"labelled": True}, "ac"),
        ({"labelled": False}, "b"),
        ({"split": "train", "labelled": True}, "a"),
        ({"split": "test", "labelled": False}, ""),
    ],
)
def test_select(folder, choice, expected):
    assert names(open_lab_dataset(folder).select(**choice)) == expected


def test_paths(folder):
    lab = open_lab_dataset(str(folder))
    assert lab.metadata.lab == "north"
    assert lab.image_path(lab.rows[0]) == folder / "images" / "a.png"
    assert lab.mask_path(lab.rows[0]) == folder / "masks" / "a.png"
    with pytest.raises(LabError, match=r"expected a mask for images/b.png"):
        lab.mask_path(lab.rows[1])


def test_missing_folder(tmp_path):
    with pytest.raises(LabError, match="expected the dataset of a lab"):
        open_lab_dataset(tmp_path / "none")


@pytest.mark.parametrize("name", ["lab.yaml", "manifest.csv", "images/b.png", "masks/c.png"])
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(LabError, match=name):
        open_lab_dataset(folder)


def test_many_missing_files_are_counted(folder):
    for path in (*folder.glob("images/*"), *folder.glob("masks/*")):
        path.unlink()
    with pytest.raises(LabError, match=r"images/a.png, masks/a.png, images/b.png and 2 more"):
        open_lab_dataset(folder)


def test_empty_manifest(folder):
    write_manifest(folder, [])
    with pytest.raises(LabError, match="expected images in the manifest"):
        open_lab_dataset(folder)
