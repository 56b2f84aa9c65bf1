from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from microseg.errors import DataError
from microseg.slides.images import read_image
from microseg.slides.pixel_size import StatedMpp, agreed_mpp, image_mpp, unit_microns


def noise(height=32, width=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def test_mpp_of_png(tmp_path):
    path = save(tmp_path / "x.png", noise(), dpi=(50_800, 50_800))
    assert image_mpp(path) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(("unit", "resolution", "mpp"), [(3, 20_000, 0.5), (2, 101_600, 0.25), (1, 20_000, None)])
def test_mpp_of_tiff_tags(tmp_path, unit, resolution, mpp):
    tifffile.imwrite(tmp_path / "x.tif", noise(), photometric="rgb", resolution=(resolution,) * 2, resolutionunit=unit)
    assert image_mpp(tmp_path / "x.tif") == mpp


@pytest.mark.parametrize(("size", "unit", "mpp"), [(0.25, "µm", 0.25), (250, "nm", 0.25), (1, "mm", None)])
def test_mpp_of_ome(tmp_path, size, unit, mpp):
    metadata = {"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeY": size}
    metadata |= {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    tifffile.imwrite(tmp_path / "x.ome.tif", noise(), photometric="rgb", metadata=metadata)
    assert image_mpp(tmp_path / "x.ome.tif") == mpp


@pytest.mark.parametrize(
    ("unit", "microns"),
    [
        *((unit, 1.0) for unit in ("µm", "μm", "um", "UM", r"\u00B5m", r"\u03BCm", "Âµm", "Î¼m", "\ufffdm", "micron")),
        *((unit, 1.0) for unit in ("Microns", "micrometer", "micrometers", "Micrometre", "&#181;m", "µ")),
        *(("nm", 1e-3), ("Å", 1e-4), ("mm", 1e3), ("cm", 1e4), ("inch", 25_400.0), ("inches", 25_400.0), ("m", 1e6)),
        *((unit, None) for unit in ("pixel", "px", "", "Mm", "reference frame", "furlong")),
    ],
)
def test_units_in_all_spellings(unit, microns):
    assert unit_microns(unit) == microns


@pytest.mark.parametrize("unit", ["µm", "μm", r"\u00B5m", "micron"])
def test_mpp_of_imagej_in_all_spellings(tmp_path, unit):
    path = tmp_path / "j.tif"
    text = f"ImageJ=1.54f\nunit={unit}\nloop=false\n".encode()
    tifffile.imwrite(path, noise()[:, :, 0], resolution=(4, 4), description=text, metadata=None)
    assert image_mpp(path) == 0.25


def test_ome_units_as_xml_characters(tmp_path):
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
        'DimensionOrder="XYCZT" Type="uint8" SizeX="48" SizeY="32" SizeC="3" SizeZ="1" SizeT="1" PhysicalSizeX="250" '
        "PhysicalSizeY='250' PhysicalSizeXUnit='nm' PhysicalSizeYUnit='&#110;m'><Channel SamplesPerPixel='3'/>"
        "<TiffData/></Pixels></Image></OME>"
    )
    tifffile.imwrite(tmp_path / "x.ome.tif", noise(), photometric="rgb", description=xml, metadata=None)
    assert image_mpp(tmp_path / "x.ome.tif") == 0.25


def test_sizes_of_another_image_of_the_file_are_not_taken(tmp_path):
    with tifffile.TiffWriter(tmp_path / "x.ome.tif") as tiff:
        tiff.write(noise(8, 8), photometric="rgb", metadata={"Name": "label", "PhysicalSizeX": 9, "PhysicalSizeY": 9})
        tiff.write(noise(), photometric="rgb", metadata={"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25})
    assert image_mpp(tmp_path / "x.ome.tif") == 0.25
    assert np.array_equal(read_image(tmp_path / "x.ome.tif"), noise())


def test_two_statements_of_a_size_agree_or_are_refused():
    path = Path("a.tif")
    assert agreed_mpp(path, None, None) is None
    assert agreed_mpp(path, 0.25, None) == 0.25
    assert agreed_mpp(path, None, StatedMpp(0.5, "lab.yaml")) == 0.5
    assert agreed_mpp(path, 0.2503, StatedMpp(0.25, "lab.yaml")) == 0.25
    assert agreed_mpp(path, 0.25, StatedMpp(1.0, "images.csv", overrides=True)) == 1.0
    with pytest.raises(
        DataError, match=r"0\.25 microns of the file and 1\.0 of lab\.yaml: areas would differ 16 times"
    ):
        agreed_mpp(path, 0.25, StatedMpp(1.0, "lab.yaml"))


def test_mpp_of_imagej_and_aperio(tmp_path):
    tifffile.imwrite(tmp_path / "j.tif", noise()[:, :, 0], imagej=True, resolution=(4, 4), metadata={"unit": "um"})
    assert image_mpp(tmp_path / "j.tif") == 0.25
    tifffile.imwrite(tmp_path / "a.tif", noise(), photometric="rgb", description="Aperio |AppMag = 20|MPP = 0.4990")
    assert image_mpp(tmp_path / "a.tif") == 0.499


def test_absent_or_implausible_mpp_is_none(tmp_path):
    assert image_mpp(save(tmp_path / "plain.png", noise())) is None
    assert image_mpp(save(tmp_path / "print.png", noise(), dpi=(72, 72))) is None
    assert image_mpp(save(tmp_path / "uneven.png", noise(), dpi=(50_800, 25_400))) is None
    assert image_mpp(tmp_path / "none.png") is None
    tifffile.imwrite(tmp_path / "zero.tif", noise(), photometric="rgb", resolution=(0, 0), resolutionunit=3)
    assert image_mpp(tmp_path / "zero.tif") is None
