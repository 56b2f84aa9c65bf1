"""Slides give the same pixels as tifffile, OpenSlide and `read_image`."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from openslide import OpenSlide
from PIL import Image

from microseg.errors import DataError, ImageReadError
from microseg.slides.images import read_image
from microseg.slides.readers import open_slide
from microseg.slides.slide import ArraySlide, Level, SlideView
from microseg.slides.tiff_reader import TiffSlide

Picture = npt.NDArray[np.uint8]
REGION = (300, 211, 257, 130)  # x, y, width, height: over several tiles, beginning within one


def cut(pixels: Picture, x: int, y: int, width: int, height: int) -> Picture:
    return pixels[y : y + height, x : x + width]


@pytest.mark.parametrize("ome", [False, True])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_reads_levels_of_pyramids(
    tmp_path: Path, picture: Picture, write_pyramid: Callable[..., Path], ome: bool, compression: str | None
) -> None:
    path = write_pyramid(tmp_path / "slide.tif", picture, ome=ome, compression=compression)
    with open_slide(path) as slide, OpenSlide(str(path)) as peer:
        assert isinstance(slide, TiffSlide)
        assert slide.mpp == 0.5
        assert slide.levels == (Level(900, 700, 1.0), Level(450, 350, 2.0), Level(225, 175, 4.0))
        np.testing.assert_array_equal(slide.read_region(0, *REGION), cut(tifffile.imread(path), *REGION))
        np.testing.assert_array_equal(
            slide.read_region(0, *REGION), np.asarray(peer.read_region(REGION[:2], 0, REGION[2:]))[..., :3]
        )
        np.testing.assert_array_equal(slide.read_region(2, 10, 20, 200, 100), picture[::4, ::4][20:120, 10:210])
        if not ome:  # of a pyramid in sub-images OpenSlide sees the first level only
            assert peer.level_dimensions == tuple((level.width, level.height) for level in slide.levels)
            assert float(peer.properties["openslide.mpp-x"]) == slide.mpp


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", ["gray", "white is 0", "rgb", "rgba", "separate planes", "palette", "jpeg", "strips"])
def test_region_equals_that_of_the_whole_image(tmp_path: Path, picture: Picture, kind: str, bits: int) -> None:
    path, pixels = tmp_path / "image.tif", picture if bits == 8 else picture.astype(np.uint16) * 16
    if kind in ("palette", "jpeg") and bits == 16:
        pytest.skip("there is no such thing")
    if kind == "palette":
        colors = np.random.default_rng(0).integers(0, 256, (3, 256), np.uint16) * 257
        tifffile.imwrite(path, pixels[..., 0], photometric="palette", colormap=colors, tile=(128, 128))
    elif kind == "jpeg":
        Image.fromarray(picture).save(path, compression="jpeg", quality=90)
    elif kind == "strips":
        tifffile.imwrite(path, pixels, photometric="rgb", rowsperstrip=16)
    elif kind == "separate planes":
        tifffile.imwrite(path, pixels.transpose(2, 0, 1), photometric="rgb", planarconfig="separate", tile=(128, 128))
    elif kind == "rgba":
        alpha = np.linspace(0, pixels.max(), pixels.shape[1]).astype(pixels.dtype)
        layered = np.dstack([pixels, np.broadcast_to(alpha, pixels.shape[:2])])
        tifffile.imwrite(path, layered, photometric="rgb", extrasamples=["unassalpha"], tile=(128, 128))
    elif kind == "rgb":
        tifffile.imwrite(path, pixels, photometric="rgb", tile=(128, 128))
    else:
        photometric = "minisblack" if kind == "gray" else "miniswhite"
        tifffile.imwrite(path, pixels[..., 1], photometric=photometric, tile=(128, 128))
    with open_slide(path) as slide:
        assert isinstance(slide, TiffSlide)
        np.testing.assert_array_equal(slide.read_region(0, *REGION), cut(read_image(path), *REGION))


def test_cmyk(tmp_path: Path, picture: Picture) -> None:
    Image.fromarray(picture).convert("CMYK").save(tmp_path / "print.tif")
    with open_slide(tmp_path / "print.tif") as slide:
        np.testing.assert_array_equal(slide.read_region(0, *REGION), cut(picture, *REGION))


def test_channels_on_pages(tmp_path: Path, picture: Picture) -> None:
    planes = picture.transpose(2, 0, 1)
    tifffile.imwrite(
        tmp_path / "c.ome.tif", planes, photometric="minisblack", tile=(128, 128), metadata={"axes": "CYX"}
    )
    with open_slide(tmp_path / "c.ome.tif") as slide:
        assert isinstance(slide, TiffSlide)
        np.testing.assert_array_equal(slide.read_region(0, *REGION), cut(picture, *REGION))


def test_bit_depth_is_the_same_in_all_regions(tmp_path: Path, picture: Picture) -> None:
    pixels = (picture // 16).astype(np.uint16)
    pixels[600:, 800:] = 4000
    tifffile.imwrite(tmp_path / "deep.tif", pixels, photometric="rgb", tile=(128, 128))
    with open_slide(tmp_path / "deep.tif") as slide:
        np.testing.assert_array_equal(slide.read_region(0, *REGION), cut(read_image(tmp_path / "deep.tif"), *REGION))


def test_reading_is_thread_safe(tmp_path: Path, picture: Picture, write_pyramid: Callable[..., Path]) -> None:
    path = write_pyramid(tmp_path / "slide.tif", picture, compression="zlib")
    places = [(x, y) for x in range(0, 800, 50) for y in range(0, 600, 100)]
    with open_slide(path) as slide, ThreadPoolExecutor(4) as pool:
        for (x, y), region in zip(
            places, pool.map(lambda at: slide.read_region(0, *at, 100, 100), places), strict=True
        ):
            np.testing.assert_array_equal(region, cut(picture, x, y, 100, 100))


def test_thumbnail(tmp_path: Path, picture: Picture, write_pyramid: Callable[..., Path]) -> None:
    path = write_pyramid(tmp_path / "slide.tif", picture)
    expected = np.asarray(Image.fromarray(picture).resize((90, 70), Image.Resampling.BOX))
    with open_slide(path) as slide:
        assert np.abs(slide.thumbnail(90).astype(int) - expected).max() < 16  # reduced from the coarsest level
        assert slide.thumbnail(5000).shape == picture.shape
    with ArraySlide(picture, path, None) as slide:
        np.testing.assert_allclose(slide.thumbnail(90).astype(int), expected, atol=1)


@pytest.mark.parametrize("region", [(-1, 0, 5, 5), (0, 0, 901, 5), (899, 699, 2, 1), (0, 0, 0, 5)])
def test_rejects_region_outside_the_slide(tmp_path: Path, picture: Picture, region: tuple[int, int, int, int]) -> None:
    with ArraySlide(picture, tmp_path, None) as slide, pytest.raises(DataError, match="inside 900 x 700"):
        slide.read_region(0, *region)


def test_rejects_missing_damaged_and_other_files(
    tmp_path: Path, picture: Picture, write_pyramid: Callable[..., Path]
) -> None:
    with pytest.raises(ImageReadError, match="found none"):
        open_slide(tmp_path / "gone.tif")
    (tmp_path / "text.svs").write_text("no slide")
    with pytest.raises(ImageReadError, match="no slide reader recognizes"):
        open_slide(tmp_path / "text.svs")
    path = write_pyramid(tmp_path / "slide.tif", picture, compression="zlib")
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages.first.dataoffsets[9]
    content = bytearray(path.read_bytes())
    content[offset : offset + 40] = b"\xff" * 40
    path.write_bytes(content)
    with open_slide(path) as slide:
        slide.read_region(0, 0, 0, 100, 100)
        with pytest.raises(ImageReadError, match="damaged there"):
            slide.read_region(0, 0, 0, 900, 400)
    for size in (300, len(content) // 2, len(content) - 10_000):
        path.write_bytes(content[:size])
        with pytest.raises(ImageReadError):
            open_slide(path)


# ---- views at another scale


@pytest.mark.parametrize("zoom", [0.31, 0.5, 0.93, 1.0, 1.7])
def test_view_region_equals_that_of_the_rescaled_slide(picture: Picture, zoom: float) -> None:
    size = (round(900 * zoom), round(700 * zoom))
    whole = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR), int)
    view = SlideView(ArraySlide(picture, Path("a.png"), None), zoom)
    assert (view.width, view.height) == size
    for rows, columns in ((slice(0, 64), slice(0, 80)), (slice(101, 150), slice(77, 160))):
        difference = np.abs(view.read(rows, columns) - whole[rows, columns])
        assert difference.max() <= 2  # weights and sums are rounded to 8 bits, twice
        assert difference.mean() < 0.05
    end = view.read(slice(size[1] - 40, size[1]), slice(size[0] - 50, size[0]))
    assert np.abs(end - whole[-40:, -50:]).max() <= 2


def test_view_mirrors_the_slide_beyond_its_edge(picture: Picture) -> None:
    view = SlideView(ArraySlide(picture, Path("a.png"), None))
    expected = np.pad(picture, ((0, 20), (0, 28), (0, 0)), mode="reflect")[650:720, 850:928]
    np.testing.assert_array_equal(view.read(slice(650, 720), slice(850, 928)), expected)


def test_view_reads_the_coarsest_sufficient_level(
    tmp_path: Path, picture: Picture, write_pyramid: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_slide(write_pyramid(tmp_path / "slide.tif", picture)) as slide:
        read, used = slide.read_region, list[int]()

        def noting(level: int, *region: int) -> Picture:
            used.append(level)
            return read(level, *region)

        monkeypatch.setattr(slide, "read_region", noting)
        for zoom, level in ((1.5, 0), (1.0, 0), (0.6, 0), (0.5, 1), (0.26, 1), (0.25, 2), (0.1, 2)):
            view = SlideView(slide, zoom)
            part = view.read(slice(10, 40), slice(20, 60))
            assert used.pop() == level, zoom
            whole = Image.fromarray(picture).resize((view.width, view.height), Image.Resampling.BILINEAR)
            assert np.abs(part - np.asarray(whole, int)[10:40, 20:60]).max() < 14, zoom
