from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from microseg.annotations.classes import IGNORE, LabelClasses, MaskKind
from microseg.annotations.files import AnnotatedImage
from microseg.annotations.formats import read_annotation
from microseg.annotations.labels import LabelRegion
from microseg.errors import ImageReadError

TWO = ("background", "gland")
THREE = ("background", "gland", "tumor")
OBJECTS = np.array([[0, 1, 1, 300], [2, 2, 0, 300]], np.uint16)


def read(tmp_path: Path, array: npt.NDArray[Any], names: tuple[str, ...], kind: MaskKind, **stated: Any) -> LabelRegion:
    path = tmp_path / "masks" / ("a.tif" if array.ndim == 3 and kind != "colors" else "a.png")
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, array, photometric="minisblack")
    else:
        Image.fromarray(array).save(path)
    classes = LabelClasses(names, masks=kind, **stated)
    return read_annotation(path, AnnotatedImage("a.png", 4, 2), classes).read()


def test_instance_mask_keeps_every_object(tmp_path: Path) -> None:
    found = read(tmp_path, OBJECTS, TWO, "instances")
    assert found.classes.tolist() == [[0, 1, 1, 1], [1, 1, 0, 1]]
    assert found.instances is not None
    assert found.instances.tolist() == OBJECTS.tolist()


def test_instance_mask_does_not_state_one_of_several_classes(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match="expected one class beside the background, got 2"):
        read(tmp_path, OBJECTS, THREE, "instances")


def test_instance_mask_is_not_taken_as_class_indices(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match="masks: instances"):
        read(tmp_path, OBJECTS, TWO, "index")


@pytest.mark.parametrize("value", [1, 255])
def test_binary_mask(value: int, tmp_path: Path) -> None:
    found = read(tmp_path, np.array([[0, value, 0, 0], [0, 0, value, 0]], np.uint8), TWO, "binary")
    assert found.classes.tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]


def test_binary_mask_of_more_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match="with 0 and another value, got 0, 1, 255"):
        read(tmp_path, np.array([[0, 1, 255, 0]] * 2, np.uint8), TWO, "binary")


PALETTE = {"background": (0, 0, 0), "gland": (255, 0, 0), "tumor": (0, 0, 255), "ignore": (128, 128, 128)}


def test_colors_by_the_palette(tmp_path: Path) -> None:
    colors = np.array([[[0, 0, 0], [255, 0, 0], [0, 0, 255], [128, 128, 128]]] * 2, np.uint8)
    found = read(tmp_path, colors, THREE, "colors", palette=PALETTE)
    assert found.classes.tolist() == [[0, 1, 2, IGNORE]] * 2
    colors[0, 0] = (250, 0, 0)
    with pytest.raises(ImageReadError, match=r"got also #fa0000 \(1\)"):
        read(tmp_path, colors, THREE, "colors", palette=PALETTE)


def pages(*values: int) -> npt.NDArray[np.uint8]:
    return np.stack([np.array([[0, 0, 0, 0], [value * (column == at) for column in range(4)]], np.uint8)
                     for at, value in enumerate(values, start=1)])  # fmt: skip


def test_one_page_for_each_class(tmp_path: Path) -> None:
    assert read(tmp_path, pages(1, 255), THREE, "class_pages").classes.tolist() == [[0, 0, 0, 0], [0, 1, 2, 0]]


def test_pages_are_not_taken_for_classes_unless_stated(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match="one page with 0, 1, 2 …"):
        read(tmp_path, pages(1, 1), THREE, "index")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (pages(1, 1, 1, 1), "expected a page for each class"),
        (np.ones((2, 2, 4), np.uint8), "8 of tumor and of another one"),
    ],
)
def test_pages_that_are_not_one_for_each_class(array: npt.NDArray[np.uint8], message: str, tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match=message):
        read(tmp_path, array, THREE, "class_pages")


@pytest.mark.parametrize("names", [("a_gland.png", "a_tumor.png"), ("gland/a.png", "tumor/a.png")])
def test_one_file_for_each_class(names: tuple[str, str], tmp_path: Path) -> None:
    for name, page in zip(names, pages(255, 255), strict=True):
        path = tmp_path / "masks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(page).save(path)
    classes, image = LabelClasses(THREE), AnnotatedImage("a.png", 4, 2)
    found = read_annotation(tmp_path / "masks" / names[0], image, classes).read()
    assert found.classes.tolist() == [[0, 0, 0, 0], [0, 1, 2, 0]]
    (tmp_path / "masks" / names[1]).unlink()
    with pytest.raises(ImageReadError, match="found none of tumor"):
        read_annotation(tmp_path / "masks" / names[0], image, classes)
