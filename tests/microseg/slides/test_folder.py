"""What of a folder is an image, and what is left out."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from microseg.slides.folder import list_images


def test_lists_images_by_ending_and_slides_by_content(
    tmp_path: Path, picture: npt.NDArray[np.uint8], write_pyramid: Callable[..., Path]
) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png")
    write_pyramid(tmp_path / "b.qptiff", picture)
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "dead.png").symlink_to(tmp_path / "none.png")
    for name in ("._a.png", ".hidden.png", "Thumbs.db", "c.czi", "lab.yaml", "images.csv"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/d.png").write_bytes(b"x")
    found = list_images(tmp_path)
    assert [path.name for path in found.images] == ["a.png", "b.qptiff", "dead.png", "link.png"]
    assert found.left_out == {"c.czi": "no known kind of image (.czi)", "sub": "a folder with 1 files"}


def test_parts_of_a_slide_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "s.vms").write_text("ImageFile=s.jpg\n")
    (tmp_path / "s.jpg").write_bytes(b"x")
    (tmp_path / "m.mrxs").write_bytes(b"x")
    (tmp_path / "m").mkdir()
    (tmp_path / "m/Data.dat").write_bytes(b"x")
    found = list_images(tmp_path)
    assert [path.name for path in found.images] == ["m.mrxs", "s.vms"]
    assert found.left_out == {"s.jpg": "a part of s.vms"}


def test_any_name_can_be_listed(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"M\xfcller.png")).write_bytes(b"x")
    assert len(list_images(tmp_path).images) == 1
