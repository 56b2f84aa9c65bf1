"""Labs whose images have several channels: what is ingested, how it is scaled, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from microseg.datasets.dataset import LabDataset, open_lab_dataset
from microseg.datasets.fields import FieldRecipe
from microseg.datasets.ingest import IngestResult, ingest_lab
from microseg.datasets.lab import read_lab_metadata
from microseg.datasets.slide_update import SlideOptions
from microseg.errors import LabError
from microseg.slides.channels import Channel
from microseg.slides.images import read_image, write_png
from microseg.slides.modality import Modality, image_modality
from microseg.slides.region import SlideRegion

NAMES = ["CD44", "DAPI", "PanCK", "CD3"]
TWO = "channels: {nuclei: DAPI, membrane: [CD44, PanCK]}\n"


def incoming(folder: Path, text: str = TWO) -> Path:
    (folder / "images").mkdir(parents=True)
    (folder / "lab.yaml").write_text(f"lab: north\nstain: CODEX\nclasses: [background, cell]\nmpp: 0.5\n{text}")
    return folder


def planes(seed: int, size: int = 32, scale: int = 1) -> np.ndarray:
    """Four channels of 16 bits with values of 8, (4, size, size)."""
    return np.random.default_rng(seed).integers(0, 256, (4, size, size)).astype(np.uint16) * scale


def write(path: Path, channels: np.ndarray, names: list[str] = NAMES, **options: object) -> None:
    metadata = {"axes": "CYX", "Channel": {"Name": names}}
    tifffile.imwrite(path, channels, photometric="minisblack", metadata=metadata, **options)


def ingest(source: Path) -> IngestResult:
    slides = SlideOptions(FieldRecipe(fields=4, microns=128))
    return ingest_lab(source, source.parent / "labs", source.parent / "quarantine", slides=slides)


def rejected(result: IngestResult) -> dict[str, str]:
    return {file.file: file.reason for file in result.rejected}


def open_dataset(result: IngestResult) -> LabDataset:
    return open_lab_dataset(result.folder)


def test_channels_become_planes_of_one_range(tmp_path: Path) -> None:
    source = incoming(tmp_path / "in")
    bright, dark = planes(0, scale=16), planes(1, scale=4)
    bright[1, 5, 5] = 65_000  # a hot pixel decides nothing
    write(source / "images/bright.ome.tif", bright)
    write(source / "images/dark.ome.tif", dark[[3, 2, 0, 1]], [NAMES[at] for at in (3, 2, 0, 1)])  # in another order
    result = ingest(source)
    assert not result.rejected
    folder = result.folder
    nuclei, membrane = read_lab_metadata(folder).channels
    assert (nuclei.name, nuclei.sources, membrane.sources) == ("nuclei", ("DAPI",), ("CD44", "PanCK"))
    assert nuclei.ranges == ((0.0, 4080.0),)
    found = read_image(folder / "images/bright.png")
    np.testing.assert_array_equal(np.delete(found[..., 0].ravel(), 5 * 32 + 5), np.delete(bright[1].ravel() // 16, 165))
    np.testing.assert_array_equal(found[..., 1], bright[[0, 2]].max(0) // 16)
    assert not found[..., 2].any()
    np.testing.assert_array_equal(
        read_image(folder / "images/dark.png")[..., 0], np.rint(dark[1] / 16).astype(np.uint8)
    )


def test_later_images_are_scaled_as_the_first(tmp_path: Path) -> None:
    source = incoming(tmp_path / "in")
    write(source / "images/a.ome.tif", planes(0, scale=16))
    first = ingest(source)
    later = incoming(tmp_path / "later")
    write(later / "images/dim.ome.tif", planes(1))
    write(later / "images/saturated.ome.tif", planes(2, scale=200))
    result = ingest(later)
    assert read_lab_metadata(result.folder).channels == read_lab_metadata(first.folder).channels
    assert read_image(result.folder / "images/dim.png").max() <= 16
    assert "expected values of channel nuclei up to 4080" in rejected(result)["images/saturated.ome.tif"]


def test_other_channels_than_those_of_the_dataset_are_refused(tmp_path: Path) -> None:
    source = incoming(tmp_path / "in")
    write(source / "images/a.ome.tif", planes(0))
    ingest(source)
    for number, text in enumerate(("channels: {nuclei: DAPI}\n", "channels: {membrane: CD44, nuclei: DAPI}\n")):
        later = incoming(tmp_path / f"later{number}", text)
        write(later / "images/b.ome.tif", planes(1))
        with pytest.raises(LabError, match="expected channels nuclei, membrane as in the dataset, got"):
            ingest(later)
    fewer = incoming(tmp_path / "fewer", "channels: {nuclei: DAPI, membrane: CD44}\n")
    write(fewer / "images/b.ome.tif", planes(1))
    with pytest.raises(LabError, match="expected channel membrane to be the maximum of 2 channels of the files"):
        ingest(fewer)
    renamed = incoming(tmp_path / "renamed", "channels: {nuclei: Hoechst, membrane: [CD44, CD3]}\n")
    write(renamed / "images/b.ome.tif", planes(2), ["CD44", "Hoechst", "PanCK", "CD3"])
    assert ingest(renamed).added == 1  # the files of another round may name them otherwise


def test_values_of_8_and_16_bits_are_not_mixed_in_a_dataset(tmp_path: Path) -> None:
    source = incoming(tmp_path / "in")
    write(source / "images/a.ome.tif", planes(0).astype(np.uint8))
    ingest(source)
    later = incoming(tmp_path / "later")
    write(later / "images/b.ome.tif", planes(1, scale=16))
    with pytest.raises(LabError, match="expected values of 8 bits, or a range that the files state, as in the dataset"):
        ingest(later)


def test_images_without_the_channels_are_rejected_alone(tmp_path: Path) -> None:
    source = incoming(tmp_path / "in")
    write(source / "images/a.ome.tif", planes(0))
    write(source / "images/other.ome.tif", planes(1), ["CD44", "Hoechst", "PanCK", "CD3"])
    write_png(source / "images/rgb.png", np.zeros((32, 32, 3), np.uint8))
    result = ingest(source)
    assert result.images == 1
    reasons = rejected(result)
    assert "expected a channel 'DAPI', found 4: 1 'CD44', 2 'Hoechst'" in reasons["images/other.ome.tif"]
    assert "expected a channel 'DAPI', found 3: 1 'red'" in reasons["images/rgb.png"]


def test_several_channels_need_a_statement(tmp_path: Path) -> None:
    source = incoming(tmp_path / "in", "")
    write(source / "images/a.ome.tif", planes(0))
    with pytest.raises(LabError, match=r"State in lab\.yaml which channels are segmented"):
        ingest(source)


def test_slides_of_several_channels(tmp_path: Path) -> None:
    source = incoming(tmp_path / "in")
    rng = np.random.default_rng(0)
    side = 1600
    slide = np.zeros((4, side, side), np.uint16)
    for channel in slide:  # bright spots on black
        for x, y in rng.integers(0, side - 6, (6000, 2)):
            channel[y : y + 6, x : x + 6] = rng.integers(500, 4000)
    path = source / "images/slide.ome.tif"
    metadata = {"axes": "CYX", "Channel": {"Name": NAMES}, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    options = {"photometric": "minisblack", "tile": (256, 256)}
    with tifffile.TiffWriter(path) as file:
        file.write(slide, subifds=1, metadata=metadata, **options)
        file.write(slide[:, ::2, ::2], subfiletype=1, **options)
    path.rename(path := source / "images/slide.svs")  # slides are recognized by their content
    result = ingest(source)
    assert (result.slides, rejected(result)) == (1, {})
    dataset = open_dataset(result)
    (_, high) = dataset.metadata.channels[0].ranges[0]
    assert 3500 < high <= 4000
    assert len(dataset.rows) == 4
    for row in dataset.rows:
        region = dataset.image(row)
        assert isinstance(region, SlideRegion)
        pixels, (left, top, right, bottom) = region.read(), row.box
        nuclei = slide[1, top:bottom, left:right] / np.float32(high) * 255
        np.testing.assert_allclose(pixels[..., 0], nuclei.clip(0, 255), atol=0.51)
        assert image_modality(pixels) is Modality.FLUORESCENCE


def test_channels_of_lab_yaml(tmp_path: Path) -> None:
    for number, (text, expected) in enumerate(
        {
            "channels: [DAPI, CD44]": (Channel("DAPI"), Channel("CD44")),
            "channels: {nuclei: 2}": (Channel("nuclei", (2,)),),
            "channels: {nuclei: {from: DAPI, range: [10, 900]}}": (Channel("nuclei", ("DAPI",), ((10.0, 900.0),)),),
            "channels: {m: {from: [1, 3], range: [[0, 9], [1, 5]]}}": (Channel("m", (1, 3), ((0.0, 9.0), (1.0, 5.0))),),
        }.items()
    ):
        assert read_lab_metadata(incoming(tmp_path / str(number), text)).channels == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("DAPI", "expected names of channels"),
        ("[a, b, c, d]", "expected up to 3 channels, got 4"),
        ("[a, A]", "expected a different name for each"),
        ("['a,b']", "expected names of letters, digits, spaces"),
        ("{n: {from: 1, gamma: 2}}", "n: expected from and range, got gamma"),
        ("{n: 1.5}", "expected the name or number of a channel in the files, got 1.5"),
        ("{n: {from: 1, range: [5, 1]}}", r"n: expected range as \[black, white\]"),
        ("{n: {from: [1, 2], range: [0, 5]}}", "one for each channel of the files"),
        ("{n: {range: [0, .nan]}}", r"n: expected range as \[black, white\]"),
        ("{n: {range: [0, 1" + 400 * "0" + "]}}", r"n: expected range as \[black, white\]"),
    ],
)
def test_channels_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LabError, match=message):
        read_lab_metadata(incoming(tmp_path / "in", f"channels: {text}\n"))
