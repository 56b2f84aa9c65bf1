"""Annotation formats, the built-in one and those of other packages."""

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microseg import plugins
from microseg.annotations import formats
from microseg.annotations.classes import LabelClasses
from microseg.annotations.files import AnnotatedImage, AnnotationFile
from microseg.annotations.formats import annotation_suffixes, read_annotation
from microseg.annotations.index_masks import read_mask
from microseg.annotations.labels import ArrayLabels, Labels
from microseg.datasets.dataset import open_lab_dataset
from microseg.datasets.ingest import ingest_lab
from microseg.errors import ImageReadError
from microseg.slides.images import IMAGE_SUFFIXES, write_png

CLASSES = LabelClasses(("background", "gland"))


class Boxes:
    """``boxes/<image>.txt``: left, top, right and bottom of glands."""

    folder = "boxes"
    suffixes = (".txt",)

    def can_read(self, file: AnnotationFile, classes: LabelClasses) -> bool:
        return file.path.name.endswith(self.suffixes)

    def read(self, file: AnnotationFile, image: AnnotatedImage, classes: LabelClasses) -> Labels:
        labels = np.zeros((image.height, image.width), np.uint8)
        for line in file.path.read_text().splitlines():
            left, top, right, bottom = map(int, line.split())
            labels[top:bottom, left:right] = classes.index("gland")
        return ArrayLabels(labels)


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch, same_process: None) -> Any:
    """The format ``boxes`` of another package, beside the built-in ones."""
    point = EntryPoint("boxes", f"{__name__}:Boxes", formats.ANNOTATIONS)
    built_in = plugins._entry_points
    monkeypatch.setattr(
        plugins,
        "_entry_points",
        lambda group: built_in(group) | ({"boxes": point} if group == formats.ANNOTATIONS else {}),
    )
    original = EntryPoint.load
    monkeypatch.setattr(EntryPoint, "load", lambda self: Boxes if self.name == "boxes" else original(self))
    plugins.create_plugins.cache_clear()
    yield
    plugins.create_plugins.cache_clear()


def write_image(folder: Path, name: str, seed: int) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    write_png(folder / "images" / name, np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def test_index_masks_are_an_entry_point(tmp_path: Path) -> None:
    assert annotation_suffixes()["masks"] == IMAGE_SUFFIXES
    (tmp_path / "masks").mkdir()
    write_png(tmp_path / "masks" / "a.png", np.ones((2, 3), np.uint8))
    labels = read_annotation(tmp_path / "masks" / "a.png", AnnotatedImage("a.png", 3, 2), CLASSES)
    assert labels.read().classes.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_ingests_annotations_of_another_format(boxes: None, tmp_path: Path) -> None:
    source = tmp_path / "in"
    for seed, name in enumerate(("a.png", "b.png", "c.png")):
        write_image(source, name, seed)
    (source / "lab.yaml").write_text("lab: north\nstain: H&E\nclasses: [background, gland]\n")
    (source / "boxes").mkdir()
    (source / "boxes" / "a.txt").write_text("1 2 5 6\n")
    (source / "boxes" / "b.txt").write_text("one two\n")
    (source / "boxes" / "b.png").touch()
    (source / "masks").mkdir()
    write_png(source / "masks" / "c.png", np.ones((20, 30), np.uint8))
    result = ingest_lab(source, tmp_path / "labs", tmp_path / "quarantine")
    assert (result.images, result.labelled) == (2, 2)
    dataset = open_lab_dataset(result.folder)
    expected = np.zeros((20, 30), np.uint8)
    expected[2:6, 1:5] = 1
    assert np.array_equal(read_mask(dataset.mask_path(dataset.rows[0])), expected)
    reasons = {file.file: file.reason for file in result.rejected}
    assert reasons.keys() == {"images/b.png", "boxes/b.txt", "boxes/b.png"}
    assert "expected an annotation, but it cannot be read: ValueError" in reasons["boxes/b.txt"]
    assert "expected .txt, got .png" in reasons["boxes/b.png"]
    assert (tmp_path / "quarantine" / "north" / "boxes" / "b.txt").is_file()


def test_rejects_labels_of_other_size(boxes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Boxes, "read", lambda *_: ArrayLabels(np.ones((2, 2), np.uint8)))
    source = tmp_path / "in"
    for seed, name in enumerate(("a.png", "b.png")):
        write_image(source, name, seed)
    (source / "lab.yaml").write_text("lab: north\nstain: H&E\nclasses: [background, gland]\n")
    (source / "boxes").mkdir()
    (source / "boxes" / "a.txt").touch()
    result = ingest_lab(source, tmp_path / "labs", tmp_path / "quarantine")
    reasons = {file.file: file.reason for file in result.rejected}
    assert "expected the image's size 30 x 20, got 2 x 2" in reasons["boxes/a.txt"]


def test_rejects_unknown_kind_of_file(tmp_path: Path) -> None:
    path = tmp_path / "masks" / "a.xml"
    path.parent.mkdir()
    path.write_text("<Annotations/>")
    with pytest.raises(ImageReadError, match=r"expected an annotation \(.*masks/\*\.png"):
        read_annotation(path, AnnotatedImage("a.png", 3, 2), CLASSES)


def test_rejects_a_file_that_two_formats_claim(boxes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Boxes, "folder", "masks")
    monkeypatch.setattr(Boxes, "suffixes", (".png",))
    mask = tmp_path / "masks" / "a.png"
    mask.parent.mkdir()
    write_png(mask, np.zeros((16, 16), np.uint8))
    with pytest.raises(ImageReadError, match=r"expected one annotation format for masks/\*\.png, got several: Boxes"):
        read_annotation(mask, AnnotatedImage("a.png", 16, 16), CLASSES)
