"""The images of a batch: their files, pixel sizes, bit depth and channels."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile

from microseg.errors import DataError, LabError
from microseg.inference.batch_images import find_batch_images
from microseg.slides.channels import Channel
from microseg.slides.images import write_png
from microseg.slides.pixel_size import StatedMpp

pytestmark = pytest.mark.usefixtures("same_process")

METADATA = "lab: lab_a\nstain: H&E\nclasses: [background, gland]\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a TIFF that states 0.5 microns per pixel, and a PNG that states none."""
    folder = tmp_path / "slides"
    folder.mkdir()
    image = np.full((16, 16, 3), 200, np.uint8)
    write_png(folder / "a.png", image)
    tifffile.imwrite(folder / "b.tif", image, photometric="rgb", resolution=(20_000, 20_000), resolutionunit=3)
    return folder


@pytest.fixture
def find(folder: Path, tmp_path: Path):
    return partial(find_batch_images, mpp=None, labs=tmp_path / "labs")


def test_images_of_a_folder(folder: Path, find) -> None:
    (folder / "notes.docx").write_bytes(b"any")
    found = find(folder)
    assert found.images == (folder / "a.png", folder / "b.tif")
    assert found.left_out == {"notes.docx": "no known kind of image (.docx)"}
    assert (found.lab, found.mpp, found.reading.bit_depth, found.notes) == (None, {}, None, ())


def test_images_of_a_lab_have_its_name_pixel_size_and_bit_depth(folder: Path, find) -> None:
    lab = folder.parent / "lab_a"
    lab.mkdir()
    images = folder.rename(lab / "images")
    (lab / "lab.yaml").write_text(METADATA + "mpp: 0.5\nbit_depth: 12\n")
    for source in (lab, images / "a.png"):  # lab.yaml beside images/ is that of a single image, too
        found = find(source)
        assert found.images[0] == images / "a.png"
        assert (found.lab, found.mpp["a.png"], found.reading.bit_depth) == ("lab_a", StatedMpp(0.5, "lab.yaml"), 12)
    with pytest.raises(DataError, match=r"got 1\.0 microns of --mpp and 0\.5 of lab\.yaml"):
        find(lab, mpp=1.0)


def test_bit_depth_of_a_dataset_holds_for_later_images_of_its_lab(folder: Path, find) -> None:
    (folder / "lab.yaml").write_text(METADATA)
    dataset = folder.parent / "labs" / "lab_a"
    dataset.mkdir(parents=True)
    (dataset / "lab.yaml").write_text(METADATA + "bit_depth: 10\n")
    assert (find(folder).reading.bit_depth, find(folder).notes) == (10, ())


def test_pixel_sizes_of_the_table_override_those_of_files_with_a_note(folder: Path, find) -> None:
    (folder / "images.csv").write_text("file,mpp\nb.tif,1.0\nc.tif,1.0\n")
    found = find(folder)
    assert found.mpp == {"b.tif": StatedMpp(1.0, "images.csv", overrides=True)}
    assert found.notes == (
        "b.tif: 1.0 microns per pixel of images.csv override 0.5 of the file",
        "images.csv has 1 lines of images that are not there: c.tif",
    )
    assert find(folder / "b.tif").notes == found.notes[:1]
    with pytest.raises(DataError, match=r"2\.0 microns of --mpp and 1\.0 of images\.csv"):
        find(folder, mpp=2.0)


def test_images_have_one_bit_depth(folder: Path, find) -> None:
    pixels = np.full((16, 16, 3), 255, np.uint16)
    for name, factor in (("dark.tif", 2), ("bright.tif", 16)):  # 510 and 4080
        tifffile.imwrite(folder / name, pixels * factor, photometric="rgb")
    (folder / "damaged.tif").write_bytes(b"II*\0")
    found = find(folder)
    assert found.reading.bit_depth == 12
    assert "2 images of 16 bits do not state how many of them are used: 12 hold nearly all values" in found.notes[0]


def test_missing_images_are_refused(tmp_path: Path, find) -> None:
    with pytest.raises(DataError, match="expected an image or a folder of images, found none"):
        find(tmp_path / "gone")
    with pytest.raises(DataError, match=r"Write an address into a file such as slide\.zarr\.url"):
        find(Path("https:/example.org/slides"))
    (tmp_path / "notes.docx").write_bytes(b"any")
    with pytest.raises(DataError, match=r"found none \(.*notes\.docx: no known kind of image"):
        find(tmp_path)


def test_channels_of_a_lab_have_the_ranges_of_its_dataset(tmp_path: Path) -> None:
    lab, dataset, labs = tmp_path / "incoming", tmp_path / "labs" / "lab_a", tmp_path / "labs"
    (lab / "images").mkdir(parents=True)
    dataset.mkdir(parents=True)
    planes = np.arange(2 * 32 * 32, dtype=np.uint16).reshape(2, 32, 32)
    tifffile.imwrite(lab / "images/a.tif", planes, photometric="minisblack", planarconfig="separate")
    (lab / "lab.yaml").write_text(METADATA + "channels: {nuclei: 2}\n")
    found = find_batch_images(lab, mpp=None, labs=labs)
    (nuclei,) = found.reading.channels
    assert nuclei.ranges == ((1025.0, 2046.0),)
    (note,) = found.notes
    assert note.startswith("values of 16 bits are scaled by the range of these images: nuclei 1025 to 2046")
    (dataset / "lab.yaml").write_text(METADATA + "channels: {nuclei: {from: DAPI, range: [0, 4000]}}\n")
    found = find_batch_images(lab, mpp=None, labs=labs)
    assert (found.reading.channels, found.notes) == ((Channel("nuclei", (2,), ((0.0, 4000.0),)),), ())
    stated = (lab / "lab.yaml").read_text()
    (lab / "lab.yaml").write_text(METADATA)  # as ingest does, those of the dataset are used where it states none
    found = find_batch_images(lab, mpp=None, labs=labs)
    assert found.reading.channels == (Channel("nuclei", ("DAPI",), ((0.0, 4000.0),)),)
    (lab / "lab.yaml").write_text(stated)
    (dataset / "lab.yaml").write_text(METADATA + "channels: {membrane: 1}\n")
    with pytest.raises(LabError, match="expected channels membrane as in the dataset, got nuclei"):
        find_batch_images(lab, mpp=None, labs=labs)


def test_images_of_a_dataset_have_their_channels_in_place_of_colors(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    write_png(tmp_path / "images/a.png", np.zeros((16, 16, 3), np.uint8))
    channels = "channels: {nuclei: {from: DAPI, range: [0, 4000]}, membrane: CD44}\n"
    (tmp_path / "lab.yaml").write_text(METADATA + channels)
    (tmp_path / "manifest.csv").write_text("image\n")
    found = find_batch_images(tmp_path, mpp=None, labs=tmp_path / "labs")
    assert found.reading.channels == (Channel("nuclei", (1,)), Channel("membrane", (2,)))
