import re

import numpy as np
import pytest
from PIL import Image

from microseg.datasets.checks import CheckedImage, check_pair
from microseg.slides.images import image_digest

CLASSES = ("background", "gland")


def noise(seed=0, height=24, width=32):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def labels(value=1, height=24, width=32):
    array = np.zeros((height, width), np.uint8)
    array[2:8, 3:9] = value
    return array


@pytest.fixture
def image(tmp_path):
    return save(tmp_path / "x.png", noise())


def test_what_is_known_of_an_image(image, tmp_path):
    mask = save(tmp_path / "x.tif", labels())
    assert check_pair(image, mask, CLASSES) == CheckedImage(
        "x", image, mask, width=32, height=24, mpp=None, sha256=image_digest(noise()), plain=True
    )


def test_pixel_size_of_the_file(tmp_path):
    checked = check_pair(save(tmp_path / "sized.png", noise(1), dpi=(50_800, 50_800)), None, CLASSES)
    assert checked.mpp == pytest.approx(0.5, rel=1e-3)
    assert checked.plain


def test_smallest_image(tmp_path):
    small = save(tmp_path / "small.png", noise(height=16, width=16))
    assert isinstance(check_pair(small, None, CLASSES), CheckedImage)
    smaller = save(tmp_path / "smaller.png", noise(height=16, width=15))
    assert "at least 16 pixels a side, got 15 x 16" in check_pair(smaller, None, CLASSES)[smaller]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (labels(height=23), r"expected the image's size 32 x 24, got 32 x 23"),
        (labels(2), r"0 = background, 1 = gland; 255 = ignore\), got 2\. .*name every class in lab.yaml"),
        (labels(255), r"got only 0 and 255\. 255 means 'ignore'.*write 1 where it is gland"),
        (np.full((24, 32), 255, np.uint8), "got only 255"),
        (noise(), "got colors"),
        (b"broken", "cannot be read"),
        (b"", "empty file"),
    ],
)
def test_a_bad_mask_is_refused_with_its_image(image, tmp_path, wrong, reason):
    mask = tmp_path / "mask.png"
    if isinstance(wrong, bytes):
        mask.write_bytes(wrong)
    else:
        save(mask, wrong)
    refused = check_pair(image, mask, CLASSES)
    assert refused.keys() == {image, mask}
    assert re.search(reason, refused[mask])
    assert refused[image] == f"its mask mask.png is refused: {refused[mask]}"


def test_masks_with_ignored_or_with_no_foreground_are_fine(image, tmp_path):
    partly = labels()
    partly[20:] = 255
    for fine in (labels(0), partly):
        assert isinstance(check_pair(image, save(tmp_path / "mask.png", fine), CLASSES), CheckedImage)


def test_a_third_class_is_known_where_it_is_named(image, tmp_path):
    mask = save(tmp_path / "mask.png", labels(2))
    assert isinstance(check_pair(image, mask, (*CLASSES, "nerve")), CheckedImage)


def test_only_bare_pngs_are_plain(tmp_path):
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
    assert [name for name, file in files.items() if check_pair(file, None, CLASSES).plain] == ["bare"]
