import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from microseg.annotations.index_masks import IGNORE, read_mask
from microseg.errors import ImageReadError

COLORS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[10, 20, 30], [0, 0, 0], [255, 255, 255]]], np.uint8)
CLASSES = np.array([[0, 1, 2], [2, 1, IGNORE]], np.uint8)


def png(width, height, *, bits, color, rows):
    def chunk(kind, body):
        return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([bits, color, 0, 0, 0])
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_gray_mask_gives_its_values(tmp_path, suffix):
    assert np.array_equal(read_mask(save(tmp_path / f"m{suffix}", CLASSES)), CLASSES)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_palette_mask_gives_its_indices(tmp_path, suffix):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode="P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(tmp_path / f"m{suffix}")
    assert read_mask(tmp_path / f"m{suffix}").tolist() == [[0, 1, 2]]


def test_one_bit_mask_gives_0_and_1(tmp_path):
    Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1").save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == [[0, 1]]


@pytest.mark.parametrize(("bits", "row"), [(2, 0b00_01_10_11), (4, 0b0010_0011)])
def test_small_bit_depths_keep_their_values(tmp_path, bits, row):
    count = 8 // bits
    (tmp_path / "m.png").write_bytes(png(count, 1, bits=bits, color=0, rows=bytes([0, row])))
    assert read_mask(tmp_path / "m.png").tolist() == [
        [row >> (8 - bits * (i + 1)) & (2**bits - 1) for i in range(count)]
    ]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.uint32, np.bool_])
def test_wide_types_with_small_values(tmp_path, dtype):
    values = CLASSES.astype(dtype)
    tifffile.imwrite(tmp_path / "m.tif", values)
    assert np.array_equal(read_mask(tmp_path / "m.tif"), values.astype(np.uint8))


@pytest.mark.parametrize("array", [CLASSES, CLASSES > 0])
def test_min_is_white_mask_keeps_its_values(tmp_path, array):
    tifffile.imwrite(tmp_path / "m.tif", array, photometric="miniswhite")
    assert np.array_equal(read_mask(tmp_path / "m.tif"), array.astype(np.uint8))


def test_sixteen_bit_png_mask(tmp_path):
    assert np.array_equal(read_mask(save(tmp_path / "m.png", CLASSES.astype(np.uint16))), CLASSES)


@pytest.mark.parametrize("channels", [3, 4])
def test_color_mask_with_equal_channels(tmp_path, channels):
    array = np.repeat(CLASSES[:, :, None], channels, axis=2)
    array[:, :, 3:] = 255
    assert np.array_equal(read_mask(save(tmp_path / "m.png", array)), CLASSES)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (COLORS, "got colors"),
        (np.full((4, 4), 256, np.uint16), "got 256..256"),
        (np.dstack([CLASSES] * 4), "transparency"),
    ],
)
def test_rejects_mask_without_class_indices(tmp_path, array, message):
    with pytest.raises(ImageReadError, match=message):
        read_mask(save(tmp_path / "m.png", array))


@pytest.mark.parametrize(
    ("array", "message"), [(np.zeros((4, 4), np.float32), "float32"), (np.full((4, 4), -1, np.int16), "got -1")]
)
def test_rejects_tiff_mask_without_class_indices(tmp_path, array, message):
    tifffile.imwrite(tmp_path / "m.tif", array)
    with pytest.raises(ImageReadError, match=message):
        read_mask(tmp_path / "m.tif")


def test_rejects_jpeg_mask(tmp_path):
    with pytest.raises(ImageReadError, match="lossless mask"):
        read_mask(save(tmp_path / "m.png", CLASSES, format="JPEG"))
