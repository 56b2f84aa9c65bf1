import io
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageFile

from microseg.annotations.index_masks import IGNORE, read_mask
from microseg.errors import DataError, ImageReadError
from microseg.slides import decoding
from microseg.slides.images import image_digest, read_image, read_tiff_values, write_png
from microseg.slides.pixel_size import image_mpp
from microseg.slides.readers import open_slide

COLORS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[10, 20, 30], [0, 0, 0], [255, 255, 255]]], np.uint8)
CLASSES = np.array([[0, 1, 2], [2, 1, IGNORE]], np.uint8)


def noise(height=32, width=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


# --- conversion to RGB


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_rgb_survives_unchanged(tmp_path, suffix):
    assert np.array_equal(read_image(save(tmp_path / f"x{suffix}", noise())), noise())


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "packbits"])
def test_compressed_tiff(tmp_path, compression):
    assert np.array_equal(read_image(save(tmp_path / "x.tif", noise(), compression=compression)), noise())


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt", "packbits", "raw"])
def test_one_bit_tiff(tmp_path, compression):
    array = noise()[:, :, 0] > 128
    Image.fromarray(array).save(tmp_path / "x.tif", compression=compression)
    assert np.array_equal(read_image(tmp_path / "x.tif")[:, :, 0], array * 255)
    assert np.array_equal(read_mask(tmp_path / "x.tif"), array)


def test_tiled_ome_tiff(tmp_path):
    path = tmp_path / "x.ome.tif"
    tifffile.imwrite(path, noise(), tile=(16, 16), photometric="rgb", metadata={"axes": "YXS"})
    assert np.array_equal(read_image(path), noise())


def test_jpeg_is_close(tmp_path):
    path = save(tmp_path / "x.jpg", np.full((16, 16, 3), (200, 100, 150), np.uint8), quality=95)
    assert np.abs(read_image(path).astype(int) - (200, 100, 150)).max() <= 2


def test_format_is_recognized_by_content(tmp_path):
    save(tmp_path / "x.png", noise())
    (tmp_path / "x.png").rename(tmp_path / "x.jpg")
    assert np.array_equal(read_image(tmp_path / "x.jpg"), noise())


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_transparency_is_composited_over_white(tmp_path, suffix):
    array = np.array([[[100, 0, 0, 255], [100, 0, 0, 0], [100, 0, 0, 51]]], np.uint8)
    # 51/255 = 0.2: 0.2 * 100 + 0.8 * 255 = 224 and 0.8 * 255 = 204
    assert read_image(save(tmp_path / f"x{suffix}", array)).tolist() == [
        [[100, 0, 0], [255, 255, 255], [224, 204, 204]]
    ]


def test_gray_with_alpha(tmp_path):
    array = np.array([[[100, 255], [100, 0]]], np.uint8)
    Image.fromarray(array, mode="LA").save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png").tolist() == [[[100] * 3, [255] * 3]]


def test_transparent_color_key(tmp_path):
    Image.fromarray(COLORS).save(tmp_path / "x.png", transparency=(0, 0, 255))
    expected = COLORS.copy()
    expected[0, 2] = 255
    assert np.array_equal(read_image(tmp_path / "x.png"), expected)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_palette_gives_its_colors(tmp_path, suffix):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode="P")
    image.putpalette([255, 0, 0, 0, 255, 0, 9, 8, 7])
    image.save(tmp_path / f"x{suffix}")
    assert read_image(tmp_path / f"x{suffix}").tolist() == [[[255, 0, 0], [0, 255, 0], [9, 8, 7]]]


def test_palette_with_transparency(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.save(tmp_path / "x.png", transparency=1)
    assert read_image(tmp_path / "x.png").tolist() == [[[255, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
def test_gray_becomes_three_channels(tmp_path, suffix):
    array = np.full((8, 9), 77, np.uint8)
    assert np.array_equal(read_image(save(tmp_path / f"x{suffix}", array)), np.full((8, 9, 3), 77))


def test_one_bit_gives_0_and_255(tmp_path):
    Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1").save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png").tolist() == [[[0] * 3, [255] * 3]]


@pytest.mark.parametrize(("suffix", "tolerance"), [(".tif", 0), (".jpg", 3)])
def test_cmyk(tmp_path, suffix, tolerance):
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / f"x{suffix}")  # all cyan ink, nothing else
    assert np.abs(read_image(tmp_path / f"x{suffix}").astype(int) - (0, 255, 255)).max() <= tolerance


@pytest.mark.parametrize(
    ("highest", "depth"), [(255, 8), (256, 10), (1024, 12), (4095, 12), (4096, 14), (16384, 16), (65535, 16)]
)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_gray_is_scaled_by_the_depth_that_holds_it(tmp_path, suffix, highest, depth):
    array = np.array([[0, highest // 2, highest]], np.uint16)
    path = save(tmp_path / f"x{suffix}", array)
    expected = np.rint(array / (2**depth - 1) * 255)
    assert np.array_equal(read_image(path), np.repeat(expected[:, :, None], 3, axis=2))


def test_twelve_bits_in_sixteen_use_the_full_range(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", np.full((4, 4, 3), 4095, np.uint16), photometric="rgb")
    assert (read_image(tmp_path / "x.tif") == 255).all()


def test_sixteen_bit_color_png(tmp_path):
    path = tmp_path / "x.png"
    rows = b"".join(b"\0" + row.tobytes() for row in (noise().astype(">u2") * 257))
    path.write_bytes(png(48, 32, bits=16, color=2, rows=rows))
    assert np.array_equal(read_image(path), noise())


def test_float_tiff(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", (noise() / 255).astype(np.float32), photometric="rgb")
    assert np.array_equal(read_image(tmp_path / "x.tif"), noise())


@pytest.mark.parametrize("value", [-0.1, 1.5, 200.0, np.nan, np.inf])
def test_rejects_float_outside_0_to_1(tmp_path, value):
    tifffile.imwrite(tmp_path / "x.tif", np.full((8, 8), value, np.float32))
    with pytest.raises(ImageReadError, match=r"x.tif.*0\.\.1"):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize(
    ("array", "fault"),
    [(np.full((8, 8), -1, np.int16), "16-bit signed"), (np.full((8, 8), 70_000, np.uint32), "32-bit unsigned")],
)
def test_rejects_integers_outside_16_bits(tmp_path, array, fault):
    tifffile.imwrite(tmp_path / "x.tif", array)
    with pytest.raises(ImageReadError, match=f"65535.*{fault}"):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["x.png", "x.tif", "deep.tif", "mask.png"])
def test_orientation_is_applied(tmp_path, kind, orientation):
    upright = noise(4, 6) if kind != "mask.png" else noise(4, 6)[:, :, 0]
    # how a camera held that way stores it: the inverse of what the orientation tag asks for (TIFF 6.0, tag 274)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    stored = np.ascontiguousarray(stored)
    path = tmp_path / kind
    if kind == "deep.tif":
        tag = (274, 3, 1, orientation, True)
        tifffile.imwrite(path, stored.astype(np.uint16) * 257, photometric="rgb", extratags=[tag])
    else:
        exif = Image.Exif()
        exif[274] = orientation
        save(path, stored, exif=exif)
    read = read_mask(path) if kind == "mask.png" else read_image(path)
    assert np.array_equal(read, upright)


def test_refuses_several_pages(tmp_path):
    first, second = Image.fromarray(noise()), Image.fromarray(noise(seed=1))
    first.save(tmp_path / "x.tif", save_all=True, append_images=[second])
    for read in (read_image, read_mask):
        with pytest.raises(ImageReadError, match=r"one image, got a page of 48 x 32 beside one of 48 x 32.*0, 1, 2"):
            read(tmp_path / "x.tif")


# --- files that are rejected


def test_rejects_missing_empty_and_other_files(tmp_path):
    with pytest.raises(ImageReadError, match="found none"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageReadError, match="found none"):
        read_image(tmp_path)
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageReadError, match=r"empty file \(0 bytes\)"):
        read_image(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ImageReadError, match="cannot be read"):
        read_image(tmp_path / "text.png")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "EPS"])
def test_rejects_other_formats(tmp_path, kind):
    Image.fromarray(noise()).save(tmp_path / "x.png", format=kind)
    with pytest.raises(ImageReadError, match="another kind"):
        read_image(tmp_path / "x.png")


TRUNCATED = {
    "x.png": {},
    "x.jpg": {},
    "x.bmp": {},
    "raw.tif": {"compression": "raw"},
    "lzw.tif": {"compression": "tiff_lzw"},
    "deep.tif": None,
}


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", TRUNCATED)
def test_rejects_truncated_file(tmp_path, name, share, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as some libraries do
    path, options = tmp_path / name, TRUNCATED[name]
    if options is None:
        tifffile.imwrite(path, noise(64, 64).astype(np.uint16), photometric="rgb", rowsperstrip=8)
    else:
        save(path, noise(64, 64), **options)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ImageReadError, match="truncated"):
        read_image(path)


@pytest.mark.parametrize("level", [0, 6])
def test_rejects_broken_checksum(tmp_path, level):
    content = bytearray(save(tmp_path / "x.png", noise(), compress_level=level).read_bytes())
    content[len(content) // 2] ^= 1  # at level 0 a pixel, which decodes as well as before
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ImageReadError):
        read_image(tmp_path / "x.png")


@settings(max_examples=150)
@given(data=st.data(), kind=st.sampled_from(["PNG", "JPEG", "TIFF", "BMP"]))
def test_damaged_files_raise_nothing_but_image_read_error(tmp_path_factory, data, kind):
    buffer = io.BytesIO()
    Image.fromarray(noise(16, 16)).save(buffer, format=kind)
    content = bytearray(buffer.getvalue())
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
        content[position] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "x.tif"
    path.write_bytes(content)
    for read in (read_image, read_mask, image_mpp):
        try:
            read(path)
        except ImageReadError as error:
            assert str(path) in str(error)  # noqa: PT017 - no error is fine as well


def png(width, height, *, bits, color, rows):
    def chunk(kind, body):
        return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([bits, color, 0, 0, 0])
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("side", [13_500, 30_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_rejects_decompression_bomb_before_decoding(tmp_path, side):
    (tmp_path / "x.png").write_bytes(png(side, side, bits=8, color=2, rows=b""))
    with pytest.raises(ImageReadError, match=r"at most 178,956,970 pixels"):
        read_image(tmp_path / "x.png")


# --- writing and hashing


@settings(max_examples=30)
@given(
    array=hnp.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20)) | st.tuples(
        st.integers(1, 20), st.integers(1, 20), st.just(3)
    ))
)  # fmt: skip
def test_png_round_trip(tmp_path_factory, array):
    path = tmp_path_factory.mktemp("png") / "x.png"
    write_png(path, array)
    assert np.array_equal((read_image if array.ndim == 3 else read_mask)(path), array)
    assert [file.name for file in path.parent.iterdir()] == ["x.png"]


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4), bool), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4), np.uint8)],
)
def test_write_png_rejects_other_arrays(tmp_path, array):
    with pytest.raises(DataError, match="expected uint8"):
        write_png(tmp_path / "x.png", array)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_png(tmp_path / "x.png", noise())

    def fail(self, data):
        with self.open("wb") as file:
            file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        write_png(tmp_path / "x.png", noise(seed=1))
    assert np.array_equal(read_image(tmp_path / "x.png"), noise())
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]


def test_digest_depends_on_pixels_only(tmp_path):
    png_file, tiff_file = save(tmp_path / "x.png", noise(), dpi=(300, 300)), save(tmp_path / "x.tif", noise())
    assert image_digest(read_image(png_file)) == image_digest(read_image(tiff_file)) == image_digest(noise())
    assert image_digest(noise()) != image_digest(noise(seed=1))
    assert image_digest(noise(4, 6)) != image_digest(noise(4, 6).reshape(6, 4, 3))
    assert image_digest(noise()[:, ::-1]) == image_digest(np.ascontiguousarray(noise()[:, ::-1]))


# --- TIFF files that Pillow cannot read exactly


@pytest.mark.parametrize("planarconfig", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_sixteen_bit_color_tiff(tmp_path, planarconfig, compression):
    array = noise().astype(np.uint16) * 257
    stored = array if planarconfig == "contig" else array.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "x.tif", stored, photometric="rgb", planarconfig=planarconfig, compression=compression)
    assert np.array_equal(read_image(tmp_path / "x.tif"), noise())


def test_sixteen_bit_lzw_tiff(tmp_path):
    import rasterio

    array = noise().astype(np.uint16) * 257
    with rasterio.open(
        tmp_path / "x.tif", "w", driver="GTiff", dtype="uint16", count=3, height=32, width=48,
        compress="lzw", photometric="rgb", interleave="pixel",
    ) as raster:  # fmt: skip
        raster.write(array.transpose(2, 0, 1))
    assert np.array_equal(read_image(tmp_path / "x.tif"), noise())


def test_sixteen_bit_rgba_tiff(tmp_path):
    array = np.zeros((2, 2, 4), np.uint16)
    array[0, :, 3] = 65535
    tifffile.imwrite(tmp_path / "x.tif", array, photometric="rgb", extrasamples=["unassalpha"])
    assert read_image(tmp_path / "x.tif")[:, 0].tolist() == [[0] * 3, [255] * 3]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("name", ["x.ome.tif", "x.tif"])
def test_three_channel_pages_are_one_rgb_image(tmp_path, dtype, name):
    planes = noise().transpose(2, 0, 1).astype(dtype) * (257 if dtype == np.uint16 else 1)
    tifffile.imwrite(
        tmp_path / name, planes, photometric="minisblack", metadata={"axes": "CYX"}, imagej=name == "x.tif"
    )
    assert np.array_equal(read_image(tmp_path / name), noise())


@pytest.mark.parametrize("options", [{"metadata": None}, {"imagej": True}, {"ome": True}, {}])
def test_every_page_of_a_stack(tmp_path, options):
    stack = np.random.default_rng(0).integers(0, 2, (5, 16, 20)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", stack, photometric="minisblack", **options)
    values, paged = read_tiff_values(tmp_path / "x.tif", every_page=True)
    assert paged
    assert np.array_equal(values, stack.transpose(1, 2, 0))


def test_refuses_a_stack_behind_one_page(tmp_path):
    stack = np.random.default_rng(0).integers(0, 2, (5, 16, 20)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", stack, photometric="minisblack", truncate=True)
    for read in (read_image, open_slide, read_tiff_values):
        with pytest.raises(ImageReadError, match="got a stack of shape"):
            read(tmp_path / "x.tif")


@pytest.mark.parametrize("shape", ["[" * 20_000, '[1e300, 1e300], "truncated": true}', '["x"], "truncated": true}'])
def test_a_damaged_description_of_a_stack_is_no_stack(tmp_path, shape):
    tifffile.imwrite(tmp_path / "x.tif", noise(), description=f'{{"shape": {shape}', metadata=None)
    assert np.array_equal(read_image(tmp_path / "x.tif"), noise())


def test_refuses_a_stack_of_channels(tmp_path):
    stack = np.stack([noise(seed=seed).transpose(2, 0, 1) for seed in range(4)])
    tifffile.imwrite(tmp_path / "x.ome.tif", stack, photometric="minisblack", metadata={"axes": "ZCYX"})
    with pytest.raises(ImageReadError, match="expected one plane, got 4 planes in depth"):
        read_image(tmp_path / "x.ome.tif")


def test_rejects_fluorescence_channels(tmp_path):
    tifffile.imwrite(
        tmp_path / "x.ome.tif", np.zeros((5, 16, 16), np.uint16), photometric="minisblack", metadata={"axes": "CYX"}
    )
    with pytest.raises(ImageReadError, match=r"3 \(RGB\).*got 5"):
        read_image(tmp_path / "x.ome.tif")


def test_pixel_limit_holds_without_that_of_pillow(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 100)
    tifffile.imwrite(tmp_path / "deep.tif", np.zeros((11, 10), np.uint16))
    Image.new("RGB", (10, 11)).save(tmp_path / "x.png")
    for name in ("x.png", "deep.tif"):
        with pytest.raises(ImageReadError, match="at most 100 pixels"):
            read_image(tmp_path / name)


def test_an_image_behind_many_thumbnails_is_not_overlooked(tmp_path):
    path, side = tmp_path / "many.tif", 32
    with tifffile.TiffWriter(path) as writer:
        for number in range(66):
            reduced = 0 < number < 65
            values = np.zeros((side // 2, side // 2, 3) if reduced else (side, side, 3), np.uint8)
            writer.write(values, photometric="rgb", subfiletype=int(reduced), metadata=None)
    with pytest.raises(ImageReadError, match="expected at most 64 pages, got more"):
        read_image(path)
    with pytest.raises(ImageReadError, match="expected at most 64 pages, got more"):
        open_slide(path)
