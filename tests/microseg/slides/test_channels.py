"""Channels: chosen by name or number, scaled by a range that holds for all images, never flattened."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from microseg.errors import DataError, ImageReadError
from microseg.slides import limited
from microseg.slides.channels import (
    Channel,
    ReadOptions,
    check_channel_names,
    is_automatic_name,
    value_range,
)
from microseg.slides.decoding import image_orientation
from microseg.slides.images import read_image
from microseg.slides.pixel_size import image_mpp
from microseg.slides.readers import file_mpp, open_slide
from microseg.slides.slide import ArraySlide

NAMES = ("CD44", "DAPI", "PanCK", "CD3")
NUCLEI, MEMBRANE = Channel("nuclei", ("DAPI",)), Channel("membrane", (4,))

Writer = Callable[[Path, np.ndarray], Path]


@pytest.fixture
def planes() -> np.ndarray:
    """Four channels of 8 bits, (4, H, W)."""
    return np.random.default_rng(0).integers(0, 256, (4, 70, 90), np.uint8)


def write_ome(path: Path, planes: np.ndarray, **options: object) -> Path:
    metadata = {"axes": "CYX", "Channel": {"Name": list(NAMES)}, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    path = path.with_suffix(".ome.tif")
    tifffile.imwrite(path, planes, photometric="minisblack", metadata=metadata, **options)
    return path


def write_imagej(path: Path, planes: np.ndarray) -> Path:
    metadata = {"axes": "CYX", "Labels": list(NAMES), "unit": "um"}
    tifffile.imwrite(path.with_suffix(".tif"), planes, imagej=True, metadata=metadata, resolution=(2, 2))
    return path.with_suffix(".tif")


def write_samples(path: Path, planes: np.ndarray) -> Path:
    tifffile.imwrite(path.with_suffix(".tif"), planes, photometric="minisblack", planarconfig="separate")
    return path.with_suffix(".tif")


def write_interleaved(path: Path, planes: np.ndarray) -> Path:
    pixels = np.ascontiguousarray(np.moveaxis(planes, 0, 2))
    tifffile.imwrite(path.with_suffix(".tif"), pixels, photometric="minisblack", planarconfig="contig")
    return path.with_suffix(".tif")


def write_pages(path: Path, planes: np.ndarray) -> Path:
    with tifffile.TiffWriter(path.with_suffix(".tif")) as file:
        for plane in planes:
            file.write(plane, photometric="minisblack", metadata=None)
    return path.with_suffix(".tif")


def write_zarr(path: Path, planes: np.ndarray, channels: list[dict] | None = None) -> Path:
    path = path.with_suffix(".zarr")
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("0", data=planes, chunks=(1, 32, 32), chunk_key_encoding={"name": "v2", "separator": "/"})
    scale = [{"type": "scale", "scale": [1.0, 0.5, 0.5]}]
    units = [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    axes = [{"name": "c", "type": "channel"}, *units]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    group.attrs["omero"] = {"channels": channels or [{"label": name} for name in NAMES]}
    return path


NAMED: tuple[Writer, ...] = (write_ome, write_imagej, write_zarr)
UNNAMED: tuple[Writer, ...] = (write_samples, write_interleaved, write_pages)


def read(path: Path, *channels: Channel) -> np.ndarray:
    """Read an image or a slide; both ways of reading agree."""
    options = ReadOptions(channels=channels)
    with open_slide(path, options) as slide:
        pixels = slide.read_region(0, 0, 0, slide.width, slide.height)
        part = slide.read_region(0, 11, 7, 40, 30)
    np.testing.assert_array_equal(part, pixels[7:37, 11:51])
    if path.is_file():
        np.testing.assert_array_equal(read_image(path, options=options), pixels)
    return pixels


@pytest.mark.parametrize("write", NAMED)
def test_channels_are_found_by_name_and_number(tmp_path: Path, planes: np.ndarray, write: Writer) -> None:
    pixels = read(write(tmp_path / "a", planes), NUCLEI, MEMBRANE)
    np.testing.assert_array_equal(pixels[..., 0], planes[1])
    np.testing.assert_array_equal(pixels[..., 1], planes[3])
    assert not pixels[..., 2].any()


@pytest.mark.parametrize("write", NAMED + UNNAMED)
def test_one_channel_is_gray(tmp_path: Path, planes: np.ndarray, write: Writer) -> None:
    pixels = read(write(tmp_path / "a", planes), Channel("nuclei", (3,)))
    np.testing.assert_array_equal(pixels, np.repeat(planes[2][..., None], 3, axis=2))


@pytest.mark.parametrize("write", UNNAMED)
def test_names_in_the_order_of_the_file(tmp_path: Path, planes: np.ndarray, write: Writer) -> None:
    pixels = read(write(tmp_path / "a", planes[:2]), Channel("nuclei"), Channel("membrane"))
    np.testing.assert_array_equal(pixels[..., :2], np.moveaxis(planes[:2], 0, 2))
    with pytest.raises(ImageReadError, match=r"expected 2 channels \(nuclei, membrane\), got 4 without names"):
        read(write(tmp_path / "b", planes), Channel("nuclei"), Channel("membrane"))


def test_a_channel_of_the_same_name_needs_no_source(tmp_path: Path, planes: np.ndarray) -> None:
    pixels = read(write_ome(tmp_path / "a", planes), Channel("dapi"), Channel("PanCK"))
    np.testing.assert_array_equal(pixels[..., :2], np.moveaxis(planes[1:3], 0, 2))


def test_maximum_of_several_channels(tmp_path: Path, planes: np.ndarray) -> None:
    pixels = read(write_ome(tmp_path / "a", planes), NUCLEI, Channel("membrane", ("CD44", "PanCK", 4)))
    np.testing.assert_array_equal(pixels[..., 1], planes[[0, 2, 3]].max(0))


@pytest.mark.parametrize("write", NAMED + UNNAMED)
def test_several_channels_are_refused_where_none_are_stated(tmp_path: Path, planes: np.ndarray, write: Writer) -> None:
    path = write(tmp_path / "a", planes)
    with pytest.raises(ImageReadError) as raised, open_slide(path):
        pass
    if write is not write_pages:  # pages can be anything
        assert "lab.yaml" in str(raised.value)


@pytest.mark.parametrize("write", NAMED)
@pytest.mark.parametrize(
    ("source", "message"),
    [("DAPI2", "expected a channel 'DAPI2', found 4: 1 'CD44', 2 'DAPI'"), (5, "expected a channel 5, found 4")],
)
def test_a_channel_that_is_not_there_is_refused(
    tmp_path: Path, planes: np.ndarray, write: Writer, source: str | int, message: str
) -> None:
    with pytest.raises(ImageReadError, match=message):
        read(write(tmp_path / "a", planes), Channel("nuclei", (source,)))


def test_two_channels_of_one_name_are_refused(tmp_path: Path, planes: np.ndarray) -> None:
    path = tmp_path / "a.ome.tif"
    metadata = {"axes": "CYX", "Channel": {"Name": ["DAPI", "DAPI", "a", "b"]}}
    tifffile.imwrite(path, planes, photometric="minisblack", metadata=metadata)
    with pytest.raises(ImageReadError, match="expected a channel 'DAPI', found 4"):
        read(path, NUCLEI)


def test_planes_in_depth_are_no_channels(tmp_path: Path, planes: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "z.tif", planes, imagej=True, metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "z.ome.tif", planes, photometric="minisblack", metadata={"axes": "ZYX"})
    for name in ("z.tif", "z.ome.tif"):
        with pytest.raises(ImageReadError, match="expected one"):
            read(tmp_path / name, Channel("nuclei", (1,)))


def test_levels_of_channels(tmp_path: Path) -> None:
    planes = np.random.default_rng(1).integers(0, 256, (4, 512, 640), np.uint8)
    path, metadata = tmp_path / "slide.ome.tif", {"axes": "CYX", "Channel": {"Name": list(NAMES)}}
    with tifffile.TiffWriter(path) as file:
        options = {"photometric": "minisblack", "tile": (128, 128), "compression": "zlib"}
        file.write(planes, subifds=1, metadata=metadata, **options)
        file.write(planes[:, ::2, ::2], subfiletype=1, **options)
    with open_slide(path, ReadOptions(channels=(NUCLEI, MEMBRANE))) as slide:
        assert [(level.width, level.height) for level in slide.levels] == [(640, 512), (320, 256)]
        pixels = slide.read_region(1, 100, 50, 200, 150)
    np.testing.assert_array_equal(pixels[..., 0], planes[1, ::2, ::2][50:200, 100:300])
    np.testing.assert_array_equal(pixels[..., 1], planes[3, ::2, ::2][50:200, 100:300])


@pytest.mark.parametrize("write", NAMED)
def test_pixel_size_and_orientation_are_those_of_the_file(tmp_path: Path, planes: np.ndarray, write: Writer) -> None:
    path = write(tmp_path / "a", planes)
    assert file_mpp(path) == 0.5
    if path.is_file():
        assert (image_mpp(path), image_orientation(path)) == (0.5, 1)


def test_orientation_of_channels_is_applied(tmp_path: Path, planes: np.ndarray) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, planes, photometric="minisblack", planarconfig="separate", extratags=[(274, 3, 1, 6)])
    assert image_orientation(path) == 6
    pixels = read_image(path, options=ReadOptions(channels=(Channel("a", (2,)),)))
    np.testing.assert_array_equal(pixels[..., 0], np.rot90(planes[1], -1))


# ---- values


@pytest.mark.parametrize("write", [*NAMED, write_samples])
def test_values_of_16_bits_are_scaled_by_the_stated_range(tmp_path: Path, planes: np.ndarray, write: Writer) -> None:
    deep = planes.astype(np.uint16) * 10 + 100
    channels = Channel("nuclei", (2,), ((100.0, 2650.0),)), Channel("membrane", (4,), ((1375.0, 2650.0),))
    pixels = read(write(tmp_path / "a", deep), *channels)
    np.testing.assert_array_equal(pixels[..., 0], planes[1])
    np.testing.assert_array_equal(
        pixels[..., 1], np.rint((planes[3].astype(float) - 127.5).clip(0) * 2).astype(np.uint8)
    )


@pytest.mark.parametrize("write", [*NAMED, write_samples])
def test_a_hot_pixel_does_not_darken_an_image(tmp_path: Path, planes: np.ndarray, write: Writer) -> None:
    deep = planes.astype(np.uint16) + 500
    deep[1, 3, 5] = 65535
    pixels = read(write(tmp_path / "a", deep), NUCLEI if write in NAMED else Channel("nuclei", (2,)))
    np.testing.assert_allclose(pixels[10:, :, 0], planes[1, 10:], atol=1.0)
    assert pixels[3, 5, 0] == 255


def test_ranges_hold_for_all_images(tmp_path: Path, planes: np.ndarray) -> None:
    bright, dark = planes.astype(np.uint16) * 16, planes.astype(np.uint16) * 4
    paths = [write_ome(tmp_path / "bright", bright), write_ome(tmp_path / "dark", dark), tmp_path / "missing.tif"]
    channels = limited.measure_ranges(paths, (NUCLEI, MEMBRANE))
    assert all(it.ranges == ((0.0, 255 * 16.0),) for it in channels)
    np.testing.assert_array_equal(read(paths[0], *channels)[..., 0], planes[1])
    np.testing.assert_array_equal(read(paths[1], *channels)[..., 0], np.rint(planes[1] / 4).astype(np.uint8))


def test_ranges_of_a_zarr_are_those_that_it_states(tmp_path: Path, planes: np.ndarray) -> None:
    window = {"start": 100, "end": 2650, "min": 0, "max": 65535}
    deep = planes.astype(np.uint16) * 10 + 100
    path = write_zarr(tmp_path / "a", deep, [{"label": name, "window": window} for name in NAMES])
    np.testing.assert_array_equal(read(path, NUCLEI)[..., 0], planes[1])
    assert limited.measure_ranges([path], (NUCLEI,)) == (NUCLEI,)


def test_8_bits_are_kept_and_not_mixed_with_16(tmp_path: Path, planes: np.ndarray) -> None:
    path = write_ome(tmp_path / "a", planes)
    assert limited.measure_ranges([path], (NUCLEI,)) == (NUCLEI,)
    with pytest.raises(ImageReadError, match="expected values up to 4000, as in the lab's other images, got 8 bits"):
        read(path, Channel("nuclei", ("DAPI",), ((0.0, 4000.0),)))


def test_floats(tmp_path: Path, planes: np.ndarray) -> None:
    path = write_ome(tmp_path / "a", (planes / 255).astype(np.float32))
    np.testing.assert_array_equal(read(path, NUCLEI)[..., 0], planes[1])
    raw = write_ome(tmp_path / "b", planes.astype(np.float32) * 3)
    np.testing.assert_array_equal(read(raw, Channel("n", (2,), ((0.0, 765.0),)))[..., 0], planes[1])
    with pytest.raises(ImageReadError, match=r"expected floats in 0\.\.1"):
        read(raw, NUCLEI)
    bad = planes.astype(np.float32)
    bad[1, 0, 0] = np.nan
    with pytest.raises(ImageReadError, match="expected finite values"):
        read(write_ome(tmp_path / "c", bad), Channel("n", (2,), ((0.0, 255.0),)))


def test_signed_and_long_numbers_are_refused(tmp_path: Path, planes: np.ndarray) -> None:
    for number, kind in enumerate((np.int16, np.uint32)):
        for write in (write_ome, write_zarr):
            with pytest.raises(ImageReadError, match="expected whole numbers"):
                read(write(tmp_path / f"{number}", planes.astype(kind)), NUCLEI)


def test_other_widths(tmp_path: Path, planes: np.ndarray) -> None:
    """Packed values of 12 bits and big-endian ones are scaled as others; fewer than 8 bits are refused."""
    deep = planes.astype(np.uint16) * 10 + 100
    tifffile.imwrite(tmp_path / "b.tif", deep.astype(">u2"), byteorder=">", planarconfig="separate", photometric=1)
    np.testing.assert_allclose(read(tmp_path / "b.tif", Channel("n", (2,)))[..., 0], planes[1], atol=1.0)
    np.testing.assert_allclose(
        read(write_zarr(tmp_path / "z", deep.astype(">u2")), NUCLEI)[..., 0], planes[1], atol=1.0
    )
    few = planes[0] % 16
    for bits, values in ((4, few), (12, deep[1])):
        tifffile.imwrite(tmp_path / f"{bits}.tif", values, bitspersample=bits, photometric=1)
    np.testing.assert_allclose(read(tmp_path / "12.tif", Channel("n"))[..., 0], planes[1], atol=1.0)
    with pytest.raises(ImageReadError, match="expected channels of at least 8 bits, got 4"):
        read(tmp_path / "4.tif", Channel("n"))


def test_range_of_values() -> None:
    counts = np.zeros(2**16, np.int64)
    counts[[100, 200, 60000]] = 5000, 4995, 5
    assert value_range(counts) == (100.0, 200.0)
    counts[:] = 0
    counts[7] = 1
    assert value_range(counts) == (7.0, 8.0)


# ---- files that are read as RGB


def test_channels_of_rgb_files(tmp_path: Path, planes: np.ndarray) -> None:
    Image.fromarray(np.ascontiguousarray(np.moveaxis(planes[:3], 0, 2))).save(tmp_path / "a.png")
    pixels = read(tmp_path / "a.png", Channel("nuclei", ("blue",)), Channel("membrane", (1,)))
    np.testing.assert_array_equal(pixels[..., :2], np.moveaxis(planes[[2, 0]], 0, 2))
    with pytest.raises(ImageReadError, match="expected a channel 'DAPI', found 3: 1 'red', 2 'green', 3 'blue'"):
        read(tmp_path / "a.png", NUCLEI)
    Image.fromarray(planes[0]).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(read(tmp_path / "gray.png", Channel("nuclei"))[..., 2], planes[0])


def test_gray_png_of_16_bits(tmp_path: Path, planes: np.ndarray) -> None:
    Image.fromarray(planes[0].astype(np.uint16) * 10 + 100).save(tmp_path / "a.png")
    (channel,) = limited.measure_ranges([tmp_path / "a.png"], (Channel("nuclei"),))
    assert channel.ranges == ((100.0, 2650.0),)
    np.testing.assert_array_equal(read(tmp_path / "a.png", channel)[..., 0], planes[0])


def test_transparency_is_no_channel(tmp_path: Path, planes: np.ndarray) -> None:
    Image.fromarray(np.ascontiguousarray(np.moveaxis(planes, 0, 2)), "RGBA").save(tmp_path / "a.png")
    with pytest.raises(ImageReadError, match="expected channels, got an image with transparency"):
        read(tmp_path / "a.png", Channel("nuclei", (1,)))


def test_channels_of_slides_that_are_read_as_rgb(
    tmp_path: Path, planes: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reader:
        priority, suffixes = 500, (".npy",)

        def can_open(self, path: Path) -> bool:
            return path.suffix == ".npy"

        def open(self, path: Path) -> ArraySlide:
            return ArraySlide(np.load(path), path, 0.5)

    monkeypatch.setattr("microseg.slides.readers._readers", lambda: [("npy", Reader())])
    np.save(tmp_path / "a.npy", np.moveaxis(planes[:3], 0, 2))
    with open_slide(tmp_path / "a.npy", ReadOptions(channels=(Channel("nuclei", ("green",)),))) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 90, 70)[..., 0], planes[1])


# ---- names


@pytest.mark.parametrize("name", ["", " ", "Channel:0:1", "channel 1", "C2", "ch-3", "0", "Ch"])
def test_names_that_programs_write(name: str) -> None:
    assert is_automatic_name(name)


@pytest.mark.parametrize("name", ["DAPI", "CD3", "CHD4", "Chlorophyll", "c-kit", "Channel A"])
def test_names_that_people_write(name: str) -> None:
    assert not is_automatic_name(name)


def test_networks_refuse_other_channels() -> None:
    check_channel_names(("nuclei", "membrane"), ("nuclei", "membrane"), "images")
    check_channel_names((), ("nuclei",), "images")
    for expected, stated in (
        (("nuclei", "membrane"), ("membrane", "nuclei")),
        (("nuclei", "membrane"), ()),
        ((), ("nuclei", "membrane")),
        (("nuclei",), ("nuclei", "membrane")),
    ):
        with pytest.raises(DataError, match="Expected images to have the channels that the network takes"):
            check_channel_names(expected, stated, "images")


def test_options_are_recorded() -> None:
    options = ReadOptions(12, (NUCLEI, Channel("membrane", ("CD44", 3), ((0.0, 10.0), (1.0, 5.0)))))
    assert ReadOptions.from_record(options.to_record()) == options
    assert ReadOptions().to_record() == {}
