"""Which reader opens a file, and readers of other packages."""

import os
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from microseg import plugins
from microseg.errors import ImageReadError
from microseg.slides import readers
from microseg.slides.images import read_image
from microseg.slides.openslide_reader import OpenSlideReader, VendorSlide
from microseg.slides.parts import slide_parts
from microseg.slides.readers import is_slide, open_slide, slide_suffixes
from microseg.slides.slide import ArraySlide
from microseg.slides.tiff_reader import TiffSlide

Picture = npt.NDArray[np.uint8]
REGION = (300, 211, 257, 130)  # x, y, width, height


def cut(pixels: Picture, x: int, y: int, width: int, height: int) -> Picture:
    return pixels[y : y + height, x : x + width]


# ---- readers of other packages


class RawReader:
    priority = 70
    suffixes = (".raw",)

    def can_open(self, path: Path) -> bool:
        return path.suffix == ".raw"

    def open(self, path: Path) -> ArraySlide:
        return ArraySlide(np.frombuffer(path.read_bytes(), np.uint8).reshape(4, 5, 3), path, 0.5)


class NotImportable:
    pass


class Incomplete:
    def can_open(self, path: Path) -> bool:
        return True


class RaisesWhenAsked(RawReader):
    def can_open(self, path: Path) -> bool:
        raise RuntimeError("no licence")


class RaisesWhenOpened(RawReader):
    def open(self, path: Path) -> ArraySlide:
        raise RuntimeError("no licence")


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Registers a further reader beside the built-in ones."""

    def add(reader: type) -> None:
        point = EntryPoint("other", f"{__name__}:{reader.__name__}", readers.SLIDE_READERS)
        found = plugins._entry_points(readers.SLIDE_READERS) | {"other": point}
        monkeypatch.setattr(plugins, "_entry_points", lambda _group: found)
        monkeypatch.setattr(EntryPoint, "load", lambda self: (self.name == "other" and load(reader)) or original(self))
        plugins.create_plugins.cache_clear()

    def load(reader: type) -> type:
        if reader is NotImportable:
            raise ImportError("no such module")
        return reader

    original = EntryPoint.load
    yield add
    plugins.create_plugins.cache_clear()


def test_built_in_readers_are_entry_points() -> None:
    assert [name for name, _ in readers._readers()] == ["dicom", "zarr", "openslide", "tiff", "image"]
    assert slide_suffixes() == (".dcm", ".zarr", ".zarr.zip", ".ozx", ".zarr.url", *OpenSlideReader.suffixes)


def test_reader_of_another_package_opens_its_files(install: Any, tmp_path: Path) -> None:
    install(RawReader)
    (tmp_path / "a.raw").write_bytes(bytes(range(60)))
    with open_slide(tmp_path / "a.raw") as slide:
        assert (slide.width, slide.height, slide.mpp) == (5, 4, 0.5)
        assert slide.read_region(0, 1, 0, 2, 1).tolist() == [[[3, 4, 5], [6, 7, 8]]]
    assert is_slide(tmp_path / "a.raw", megapixels=1000)
    assert ".raw" in slide_suffixes()


@pytest.mark.parametrize("broken", [NotImportable, Incomplete, RaisesWhenAsked])
def test_broken_reader_does_not_prevent_the_others_from_reading(
    install: Any, tmp_path: Path, picture: Picture, broken: type, caplog: pytest.LogCaptureFixture
) -> None:
    install(broken)
    Image.fromarray(picture).save(tmp_path / "a.png")
    for _ in range(2):
        with open_slide(tmp_path / "a.png") as slide:
            assert slide.width == picture.shape[1]
    assert "'other'" in caplog.text
    reasons = {
        NotImportable: "cannot be imported",
        Incomplete: "no priority, suffixes, open",
        RaisesWhenAsked: "no licence",
    }
    assert reasons[broken] in caplog.text


def test_error_names_the_reader_that_cannot_be_imported(install: Any, tmp_path: Path) -> None:
    install(NotImportable)
    (tmp_path / "a.raw").write_bytes(b"x" * 60)
    with pytest.raises(ImageReadError, match=r"a\.raw: expected an image.* reader 'other' .*cannot be imported"):
        open_slide(tmp_path / "a.raw")


def test_error_names_the_reader_that_failed(install: Any, tmp_path: Path) -> None:
    install(RaisesWhenOpened)
    (tmp_path / "a.raw").write_bytes(b"x" * 60)
    with pytest.raises(ImageReadError, match="slide reader 'other' failed: RuntimeError: no licence"):
        open_slide(tmp_path / "a.raw")


# ---- the built-in readers


def test_holds_in_memory_what_has_no_regions(tmp_path: Path, picture: Picture) -> None:
    Image.fromarray(picture).save(tmp_path / "image.png", dpi=(50_800, 50_800))
    turned = Image.fromarray(picture)
    turned.getexif()[274] = 6
    turned.save(tmp_path / "turned.tif", exif=turned.getexif())
    for name, mpp, kind in (("image.png", 0.5, ArraySlide), ("turned.tif", None, TiffSlide)):
        with open_slide(tmp_path / name) as slide:
            assert isinstance(slide, kind)
            assert slide.mpp == mpp
            whole = read_image(tmp_path / name)
            assert (slide.height, slide.width) == whole.shape[:2]
            np.testing.assert_array_equal(slide.read_region(0, *REGION), cut(whole, *REGION))


def test_opens_vendor_format_with_openslide(
    tmp_path: Path, picture: Picture, write_pyramid: Callable[..., Path]
) -> None:
    """Aperio's format is a tiled TIFF which is recognized by its description."""
    description = "Aperio Image Library v11\r\n900x700 [0,0,900x700] (128x128)|AppMag = 20|MPP = 0.4990"
    path = write_pyramid(tmp_path / "slide.svs", picture, mpp=None, description=description)
    with open_slide(path) as slide:
        assert isinstance(slide, VendorSlide)
        assert slide.mpp == 0.499
        assert [level.downsample for level in slide.levels] == [1, 2, 4]
        np.testing.assert_array_equal(slide.read_region(0, *REGION), cut(picture, *REGION))
        np.testing.assert_array_equal(slide.read_region(1, 20, 30, 64, 32), picture[::2, ::2][30:62, 20:84])
    assert is_slide(path, megapixels=1000)


def test_large_image_is_read_by_regions(tmp_path: Path, picture: Picture) -> None:
    for name in ("a.png", "a.tif"):
        Image.fromarray(picture).save(tmp_path / name)
        assert not is_slide(tmp_path / name, megapixels=0.63)
        assert is_slide(tmp_path / name, megapixels=0.62)
    (tmp_path / "a.txt").write_text("no image")
    assert not is_slide(tmp_path / "a.txt", megapixels=0)
    assert not is_slide(tmp_path / "gone.tif", megapixels=0)
    assert is_slide(tmp_path / "gone.svs", megapixels=0) is False


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def names(slide: Path) -> list[str]:
    return [path.relative_to(slide.parent).as_posix() for path in slide_parts(slide)]


def test_parts_of_mrxs_are_the_files_of_its_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a.mrxs", "a/Slidedat.ini", "a/Data0000.dat", "b/Data0000.dat", "a.png")
    assert names(tmp_path / "a.mrxs") == ["a/Data0000.dat", "a/Slidedat.ini"]


@pytest.mark.parametrize("kind", [".vms", ".VMU"])
def test_parts_of_vms_are_the_files_it_lists(tmp_path: Path, kind: str) -> None:
    touch(tmp_path, "a.jpg", "a(1,0).jpg", "a_map2.jpg", "other.jpg", "a.opt")
    listed = "[Virtual Microscope Specimen]\r\nImageFile=a.jpg\r\nImageFile(1,0) = a(1,0).jpg\r\nMapFile=a_map2.jpg\r\n"
    slide = tmp_path / f"a{kind}"
    slide.write_text(
        f"{listed}OptimizationFile=C:\\scans\\a.opt\nMacroImage=missing.jpg\nSourceLens=40\nItself={slide.name}\n"
    )
    assert names(slide) == ["a(1,0).jpg", "a.jpg", "a.opt", "a_map2.jpg"]


@pytest.mark.parametrize("kind", OpenSlideReader.suffixes)
def test_damaged_slide_has_no_parts(tmp_path: Path, kind: str) -> None:
    slide = tmp_path / f"a{kind}"
    assert names(slide) == []
    slide.write_bytes(bytes(range(256)) * 9 + b"\n" * 2**10 + b"=" + b"x" * 2**20)
    assert names(slide) == []
    if os.geteuid():  # root reads everything
        slide.chmod(0)
        assert names(slide) == []
