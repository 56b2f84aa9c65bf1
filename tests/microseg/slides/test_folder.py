"""What of a folder is an image, and what is left out."""

import os
import resource
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from microseg import limits
from microseg.errors import ResourceLimitError
from microseg.slides import folder
from microseg.slides.folder import list_images
from microseg.slides.parts import missing_parts


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


def write_dicom_bomb(path: Path, gib: float) -> None:
    """A DICOM file of a few MB that expands to ``gib`` GiB, which pydicom does before it reads any element."""
    meta = b"\x02\x00\x10\x00UI\x16\x00" + b"1.2.840.10008.1.2.1.99"
    group = b"\x02\x00\x00\x00UL\x04\x00" + len(meta).to_bytes(4, "little")
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = deflate.compress(bytes(2**24)) + deflate.flush(zlib.Z_FULL_FLUSH)
    path.write_bytes(bytes(128) + b"DICM" + group + meta + zeros * int(64 * gib) + deflate.flush())


def test_a_dicom_file_made_to_harm_is_parsed_in_a_child_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dicom_bomb(tmp_path / "b.dcm", gib=0.5)
    monkeypatch.setattr(limits, "run_limited", partial(limits.run_limited, memory=2**28))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert [path.name for path in list_images(tmp_path).images] == ["b.dcm"]  # it fails when it is read
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # KiB


def test_a_file_that_no_reader_survives_is_left_out_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(path: Path) -> bool:
        raise ResourceLimitError(f"{path}: the reading process crashed")

    monkeypatch.setattr(folder, "can_be_slide", crash)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "c.bin").write_bytes(b"x")
    found = list_images(tmp_path)
    assert [path.name for path in found.images] == ["a.png"]
    assert found.left_out["c.bin"].startswith("no known kind of image (.bin): ")
    assert found.left_out["c.bin"].endswith("the reading process crashed")


def test_names_of_parts_that_no_file_can_have_are_missing(tmp_path: Path) -> None:
    (tmp_path / "a.vms").write_text(f"ImageFile={'x' * 300}\n")
    (tmp_path / "b.mrxs").write_bytes(b"")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/Slidedat.ini").write_text(f"[HIERARCHICAL]\nINDEXFILE = {'x' * 300}\n")
    assert missing_parts(tmp_path / "a.vms") == ["x" * 300] == missing_parts(tmp_path / "b.mrxs")


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
