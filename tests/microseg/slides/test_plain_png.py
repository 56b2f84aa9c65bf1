import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from microseg.slides.plain_png import read_plain_png

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def smooth(height=37, width=53, seed=0):
    """Pixels that make an encoder choose all kinds of filters."""
    noise = np.random.default_rng(seed).integers(-9, 10, (height, width, 3))
    noise[::5] = 0
    return (noise.cumsum(axis=seed % 2) % 256).astype(np.uint8)


def encode(pixels, mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format="PNG", **options)
    return buffer.getvalue()


def chunk(kind, data):
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)


def png(stream, *parts, height=37, width=53):
    header = width.to_bytes(4) + height.to_bytes(4) + b"\x08\x02\0\0\0"
    return SIGNATURE + chunk(b"IHDR", header) + b"".join(parts) + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


def rows(pixels, filters):
    """Rows with the filters 0 (none) to 4 (Paeth), by the definition of the format."""
    height = len(pixels)
    values = pixels.reshape(height, -1).astype(int)
    left, above = np.pad(values, ((0, 0), (3, 0)))[:, :-3], np.pad(values, ((1, 0), (0, 0)))[:-1]
    corner = np.pad(values, ((1, 0), (3, 0)))[:-1, :-3]
    distances = np.abs([above - corner, left - corner, left + above - 2 * corner]).argmin(0)
    paeth = np.choose(distances, [left, above, corner])
    predicted = np.stack([0 * values, left, above, (left + above) // 2, paeth])
    filtered = ((values - predicted[filters, np.arange(height)]) % 256).astype(np.uint8)
    return np.concatenate([np.array(filters, np.uint8)[:, None], filtered], axis=1).tobytes()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("level", [0, 1, 6, 9])
def test_reads_the_pixels_that_were_written(tmp_path, level, seed):
    path = tmp_path / "x.png"
    path.write_bytes(encode(smooth(seed=seed), compress_level=level, dpi=(254, 254)))
    for content in (None, path.read_bytes()):
        np.testing.assert_array_equal(read_plain_png(path, content), smooth(seed=seed))


def test_reverses_every_filter(tmp_path):
    filters = [0, 1, 2, 3, 4, 4, 3, 2, 1, 0] * 3 + [4] * 7
    content = png(zlib.compress(rows(smooth(), filters)))
    np.testing.assert_array_equal(read_plain_png(tmp_path / "x.png", content), smooth())


def test_reads_a_stream_in_several_chunks_of_more_than_a_stored_block(tmp_path):
    pixels = smooth(300, 400)
    stream = zlib.compress(rows(pixels, [2] * 300))
    content = png(stream[99:], chunk(b"IDAT", stream[:99]), chunk(b"IDAT", b""), height=300, width=400)
    np.testing.assert_array_equal(read_plain_png(tmp_path / "x.png", content), pixels)


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA", "I;16"])
def test_leaves_other_kinds_to_pillow(tmp_path, mode):
    assert read_plain_png(tmp_path / "x.png", encode(smooth(), mode)) is None


def test_leaves_what_may_hold_an_orientation_or_transparency_to_pillow(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", "x")
    exif = Image.Exif()
    exif[274] = 6
    for options in ({"pnginfo": text}, {"exif": exif}, {"transparency": (1, 2, 3)}):
        assert read_plain_png(tmp_path / "x.png", encode(smooth(), **options)) is None


@pytest.mark.parametrize(
    "stream",
    [
        zlib.compress(rows(smooth(), [1] * 37))[:-1] + b"\0",
        zlib.compress(rows(smooth(), [1] * 37)[:-1]),
        zlib.compress(rows(smooth(), [1] * 37) + b"\0"),
        zlib.compress(rows(smooth(), [1] * 37))[:-9],
        zlib.compress(b"\x09" + rows(smooth(), [1] * 37)[1:]),
        b"",
    ],
    ids=["checksum", "short", "long", "truncated", "unknown filter", "empty"],
)
def test_leaves_a_stream_that_is_not_in_order_to_pillow(tmp_path, stream):
    assert read_plain_png(tmp_path / "x.png", png(stream)) is None


def test_leaves_large_images_and_files_to_pillow(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    path.write_bytes(encode(smooth()))
    monkeypatch.setattr("microseg.slides.plain_png._MOST_BYTES", 1000)
    assert read_plain_png(path) is None
    monkeypatch.undo()
    monkeypatch.setattr("microseg.slides.plain_png._MOST_PIXELS", 1000)
    assert read_plain_png(path) is None


@settings(max_examples=200)
@given(data=st.data())
def test_damage_gives_what_pillow_reads_or_nothing(tmp_path_factory, data):
    content = bytearray(encode(smooth(9, 11)))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    for position in data.draw(st.lists(st.integers(0, max(0, len(content) - 1)), max_size=3)):
        if content:
            content[position] ^= 1 << data.draw(st.integers(0, 7))
    found = read_plain_png(tmp_path_factory.getbasetemp() / "x.png", bytes(content))
    if found is not None:
        np.testing.assert_array_equal(found, np.asarray(Image.open(io.BytesIO(content))))
