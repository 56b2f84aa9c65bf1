import numpy as np
import pytest
import tifffile
from PIL import Image

from microseg.errors import ImageReadError
from microseg.slides.images import is_tiff, read_deep_tiff, read_image


def noise(height=32, width=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


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


def test_first_page_of_several_with_16_bits(tmp_path):
    stack = np.stack([noise(seed=seed)[:, :, 0] for seed in range(5)]).astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "x.tif", stack, photometric="minisblack")
    assert np.array_equal(read_image(tmp_path / "x.tif")[:, :, 1], noise()[:, :, 0])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("name", ["x.ome.tif", "x.tif"])
def test_three_channel_pages_are_one_rgb_image(tmp_path, dtype, name):
    planes = noise().transpose(2, 0, 1).astype(dtype) * (257 if dtype == np.uint16 else 1)
    tifffile.imwrite(
        tmp_path / name, planes, photometric="minisblack", metadata={"axes": "CYX"}, imagej=name == "x.tif"
    )
    assert np.array_equal(read_image(tmp_path / name), noise())


def test_first_plane_of_a_stack_of_channels(tmp_path):
    stack = np.stack([noise(seed=seed).transpose(2, 0, 1) for seed in range(4)])
    tifffile.imwrite(tmp_path / "x.ome.tif", stack, photometric="minisblack", metadata={"axes": "ZCYX"})
    assert np.array_equal(read_image(tmp_path / "x.ome.tif"), noise())


def test_fluorescence_channels_are_refused(tmp_path):
    tifffile.imwrite(
        tmp_path / "x.ome.tif", np.zeros((5, 16, 16), np.uint16), photometric="minisblack", metadata={"axes": "CYX"}
    )
    with pytest.raises(ImageReadError, match=r"3 \(RGB\).*got 5"):
        read_image(tmp_path / "x.ome.tif")


def test_what_pillow_reads_is_left_to_it(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "x.tif")
    Image.fromarray(noise()).save(tmp_path / "x.png")
    assert [is_tiff(tmp_path / name) for name in ("x.tif", "x.png")] == [True, False]
    assert [read_deep_tiff(tmp_path / name) for name in ("x.tif", "x.png")] == [None, None]
