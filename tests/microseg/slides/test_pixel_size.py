import numpy as np
import pytest
import tifffile
from PIL import Image

from microseg.slides.pixel_size import image_mpp


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
