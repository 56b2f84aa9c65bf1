"""What a slide consists of."""

import os
from pathlib import Path

import pytest

from microseg.slides.openslide_reader import SLIDE_SUFFIXES, slide_parts


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def names(slide: Path) -> list[str]:
    return [path.relative_to(slide.parent).as_posix() for path in slide_parts(slide)]


def test_the_folder_of_an_mrxs(tmp_path: Path) -> None:
    touch(tmp_path, "a.mrxs", "a/Slidedat.ini", "a/Data0000.dat", "b/Data0000.dat", "a.png")
    assert names(tmp_path / "a.mrxs") == ["a/Data0000.dat", "a/Slidedat.ini"]


@pytest.mark.parametrize("kind", [".vms", ".VMU"])
def test_the_images_that_a_vms_lists(tmp_path: Path, kind: str) -> None:
    touch(tmp_path, "a.jpg", "a(1,0).jpg", "a_map2.jpg", "other.jpg", "a.opt")
    listed = "[Virtual Microscope Specimen]\r\nImageFile=a.jpg\r\nImageFile(1,0) = a(1,0).jpg\r\nMapFile=a_map2.jpg\r\n"
    slide = tmp_path / f"a{kind}"
    slide.write_text(
        f"{listed}OptimizationFile=C:\\scans\\a.opt\nMacroImage=missing.jpg\nSourceLens=40\nItself={slide.name}\n"
    )
    assert names(slide) == ["a(1,0).jpg", "a.jpg", "a.opt", "a_map2.jpg"]


@pytest.mark.parametrize("kind", SLIDE_SUFFIXES)
def test_files_that_are_no_slides_at_all(tmp_path: Path, kind: str) -> None:
    slide = tmp_path / f"a{kind}"
    assert names(slide) == []
    slide.write_bytes(bytes(range(256)) * 9 + b"\n" * 2**10 + b"=" + b"x" * 2**20)
    assert names(slide) == []
    if os.geteuid():  # root reads everything
        slide.chmod(0)
        assert names(slide) == []
