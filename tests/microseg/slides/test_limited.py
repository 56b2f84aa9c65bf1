"""Files are read in a child process as they are in this one, or refused."""

import ast
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from microseg.errors import ImageReadError
from microseg.slides import images, limited, readers


@pytest.fixture
def pyramid(tmp_path):
    path, pixels = tmp_path / "a.tif", np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    with tifffile.TiffWriter(path) as tiff:
        options = {"tile": (32, 32), "photometric": "rgb", "resolution": (20000, 20000), "resolutionunit": 3}
        tiff.write(pixels, subifds=1, **options)
        tiff.write(pixels[::2, ::2], subfiletype=1, **options)
    return path


def test_a_slide_is_that_of_the_reader(pyramid):
    with readers.open_slide(pyramid) as here, limited.open_slide(pyramid) as there:
        assert (there.levels, there.mpp) == (here.levels, here.mpp)
        assert np.array_equal(there.read_region(1, 3, 4, 50, 40), here.read_region(1, 3, 4, 50, 40))
        assert np.array_equal(there.thumbnail(32), here.thumbnail(32))
    assert np.array_equal(limited.read_image(pyramid), images.read_image(pyramid))
    assert limited.image_mpp(pyramid) == 0.5
    assert not limited.is_slide(pyramid, megapixels=1)
    assert limited.is_slide(pyramid, megapixels=0.001)


def test_a_slide_that_was_replaced_is_opened_again(pyramid, tmp_path):
    with limited.open_slide(pyramid) as slide:
        Image.new("RGB", (128, 96), (1, 2, 3)).save(tmp_path / "b.tif")
        (tmp_path / "b.tif").replace(pyramid)
        assert (slide.read_region(0, 0, 0, 8, 8) == (1, 2, 3)).all()


def test_damaged_and_missing_files_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name in ("a.png", "none.png"):
        for read in (limited.read_image, limited.open_slide):
            with pytest.raises(ImageReadError, match=name):
                read(tmp_path / name)


def test_only_this_package_opens_slides_in_its_own_process():
    """A hostile file would end the batch, or the service, that asks what it is."""
    opening = {"open_slide", "is_slide", "file_mpp", "can_be_slide", "image_pixels"}
    root = Path(limited.__file__).parents[2]
    found = [
        (str(path.relative_to(root)), names)
        for folder in ("microseg", "flows")
        for path in (root / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        and node.module == "microseg.slides.readers"
        and (names := opening & {alias.name for alias in node.names})
    ]
    assert [name for name, _ in found if not name.startswith("microseg/slides/")] == []
