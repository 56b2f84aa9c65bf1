import pytest

from microseg.datasets.lab import image_key, image_name


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("images/a.png", "a"),
        ("a.ome.tif", "a"),
        ("a.OME.TIFF", "a"),
        ("a.ome.ome.tif", "a"),
        ("TCGA-18.x_0.png", "TCGA-18.x_0"),
        ("a.b", "a.b"),
        ("slide.svs", "slide.svs"),
        ("a", "a"),
    ],
)
def test_image_name(file, name):
    assert image_name(file) == name


def test_image_key():
    assert image_key("\u00c9") == image_key("e\u0301")
    assert image_key("a") != image_key("b")
