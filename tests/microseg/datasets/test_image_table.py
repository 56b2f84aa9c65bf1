import pytest

from microseg.datasets.image_table import ImageMetadata, image_key, image_name, read_image_table
from microseg.errors import LabError


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("images/a.png", "a"),
        ("a.ome.tif", "a"),
        ("a.OME.TIFF", "a"),
        ("a.ome.ome.tif", "a"),
        ("TCGA-18.x_0.png", "TCGA-18.x_0"),
        ("a.b", "a.b"),
        ("slide.svs", "slide"),
        ("a", "a"),
    ],
)
def test_image_name(file, name):
    assert image_name(file) == name


def test_image_key():
    assert image_key("\u00c9") == image_key("e\u0301")
    assert image_key("a") != image_key("b")


def read_table(folder, text):
    (folder / "images.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_image_table(folder)


def test_image_table_may_be_absent(tmp_path):
    assert read_image_table(tmp_path) == {}


@pytest.mark.parametrize(
    "text",
    [
        "file,group,mpp\na.png,p1,0.25\nB.tif,,\n",
        "file;group;mpp\r\na.png;p1;0.25\r\nB.tif;;\r\n",
        b"\xef\xbb\xbfFile, Group ,MPP\na.png, p1 ,0.25\nB.tif,,\n",
        'mpp,file,group\n0.25,"images/a.png",p1\n,B.tif,\n',
    ],
)
def test_equivalent_image_tables(tmp_path, text):
    table = read_table(tmp_path, text)
    assert table.keys() == {"a", "b"}
    assert (table["a"].group, table["a"].mpp) == ("p1", 0.25)
    assert table["b"] == ImageMetadata("B.tif", None, None)


def test_image_table_with_one_column(tmp_path):
    assert read_table(tmp_path, "file,group\na.png,p1\n") == {"a": ImageMetadata("a.png", "p1", None)}
    assert read_table(tmp_path, "file,mpp\na,0.5\n") == {"a": ImageMetadata("a", None, 0.5)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the columns file.*got nothing"),
        ("file\na.png\n", "expected the columns"),
        ("file,patient\na.png,1\n", "got file, patient"),
        ("file,group,group\na,b,c\n", "expected the columns"),
        ("group,mpp\na,1\n", "expected the columns"),
        ("file,group\na.png\n", "line 2: expected 2 values"),
        ("file,mpp\na.png,0,25\n", "line 2: expected 2 values"),
        ("file;mpp\na.png;0,25\n", "line 2: .*decimal point.*'0,25'"),
        ("file,mpp\na.png,0\n", "0.05 to 20.0.*'0'"),
        ("file,mpp\na.png,nan\n", "microns per pixel"),
        ("file,mpp\n,0.5\n", "line 2: expected a file name"),
        ("file,group\na.png,1\nA.tif,2\n", r"line 3: expected each image once, got A.tif"),
        ('file,group\n"a.png,1\n', "expected CSV"),
        (b"file,group\n\xff,1\n", "expected CSV in UTF-8"),
    ],
)
def test_rejects_invalid_image_tables(tmp_path, text, message):
    with pytest.raises(LabError, match=message) as caught:
        read_table(tmp_path, text)
    assert str(tmp_path / "images.csv") in str(caught.value)
