import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from microseg.datasets.lab import (
    LAB_FILE_TEMPLATE,
    ImageMetadata,
    LabMetadata,
    check_lab_name,
    image_key,
    image_name,
    read_image_table,
    read_lab_metadata,
    write_lab_metadata,
)
from microseg.errors import LabError

METADATA = {"lab": "north", "stain": "H&E", "classes": ["background", "gland"]}


def write_metadata(folder, **changes):
    values = {key: value for key, value in (METADATA | changes).items() if value != "absent"}
    (folder / "lab.yaml").write_text(yaml.safe_dump(values))
    return folder


@pytest.mark.parametrize("name", ["a", "9", "lab_a", "hospital-2", "x" * 63])
def test_accepts_valid_lab_names(name):
    assert check_lab_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "Lab", "lab a", "../x", "/x", "a/b", "-a", "_a", ".", "lab\n", "läb", "x" * 64, "a.b", "con:", "٣", None, 3],
)
def test_rejects_invalid_lab_names(name):
    with pytest.raises(LabError, match="lower-case letters") as caught:
        check_lab_name(name)
    proposed = str(caught.value).rsplit("Call it '", 1)[1].split("'")[0]
    assert check_lab_name(proposed) == proposed


@given(st.text())
def test_error_proposes_a_valid_lab_name(name):
    try:
        assert check_lab_name(name) == name
    except LabError as error:
        proposed = str(error).rsplit("Call it '", 1)[1].split("'")[0]
        assert check_lab_name(proposed) == proposed


def test_template_is_valid(tmp_path):
    (tmp_path / "lab.yaml").write_text(LAB_FILE_TEMPLATE)
    metadata = read_lab_metadata(tmp_path)
    assert (metadata.lab, metadata.classes, metadata.mpp, metadata.scanner) == (
        "my-lab",
        ("background", "gland"),
        0.5,
        None,
    )


def test_reads_lab_yaml(tmp_path):
    (tmp_path / "lab.yaml").write_text(
        "lab: north\ntissue: human, seven organs\nstain: DAB-H  # brown\nmpp: null\n"
        "classes: [background, nucleus]\nlabelled: false   # masks only under test/\n"
    )
    assert read_lab_metadata(tmp_path) == LabMetadata(
        lab="north", tissue="human, seven organs", stain="DAB-H", classes=("background", "nucleus")
    )


def test_round_trip(tmp_path):
    metadata = LabMetadata(
        lab="north", stain="Größe", classes=("background", "a", "b"), mpp=0.25, tissue="colon", labelled=True
    )
    write_lab_metadata(tmp_path, metadata)
    assert read_lab_metadata(tmp_path) == metadata
    assert [file.name for file in tmp_path.iterdir()] == ["lab.yaml"]


def test_byte_order_mark_is_accepted(tmp_path):
    write_metadata(tmp_path)
    (tmp_path / "lab.yaml").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "lab.yaml").read_bytes())
    assert read_lab_metadata(tmp_path).lab == "north"


def test_error_of_missing_lab_yaml_shows_the_template(tmp_path):
    with pytest.raises(LabError, match="found none") as caught:
        read_lab_metadata(tmp_path)
    assert LAB_FILE_TEMPLATE in str(caught.value)


@pytest.mark.parametrize("content", ["lab: [", "- a\n- b", "", "just text", b"lab: \xff\xfe", "a: *b"])
def test_rejects_yaml_without_mapping(tmp_path, content):
    (tmp_path / "lab.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LabError, match="Write it like this"):
        read_lab_metadata(tmp_path)


def test_yaml_cannot_create_objects(tmp_path):
    (tmp_path / "lab.yaml").write_text("lab: !!python/object/apply:os.system ['true']")
    with pytest.raises(LabError, match="expected YAML"):
        read_lab_metadata(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"color": "red", "mpp ": 1}, "expected the keys lab, stain, classes, mpp.*got also color, mpp "),
        ({"stain": "absent"}, "stain: Field required"),
        ({"lab": "absent"}, "lab: Field required"),
        ({"lab": "../etc"}, "lower-case letters"),
        ({"lab": 12}, "lab: .*string"),
        ({"stain": " "}, "stain: "),
        ({"classes": "background"}, "classes: "),
        ({"classes": ["background"]}, "expected 2 to 254 classes"),
        ({"classes": [f"c{i}" for i in range(255)]}, "expected 2 to 254 classes"),
        ({"classes": ["background", "gland", "Gland"]}, "different name for each class"),
        ({"classes": ["gland", "background"]}, "background to come first"),
        ({"classes": ["background", 1]}, "classes.1"),
        ({"mpp": 0}, "0.05 to 20.0 microns per pixel.*got 0"),
        ({"mpp": -0.25}, "microns per pixel"),
        ({"mpp": 250}, "microns per pixel.*got 250"),
        ({"mpp": float("nan")}, "microns per pixel"),
        ({"mpp": "0,25"}, "mpp: "),
        ({"labelled": "perhaps"}, "labelled: "),
    ],
)
def test_rejects_invalid_values_and_names_the_file(tmp_path, changes, message):
    with pytest.raises(LabError, match=message) as caught:
        read_lab_metadata(write_metadata(tmp_path, **changes))
    assert str(tmp_path / "lab.yaml") in str(caught.value)


def test_expected_lab_name(tmp_path):
    assert read_lab_metadata(write_metadata(tmp_path), lab="north").lab == "north"
    with pytest.raises(LabError, match="expected lab 'south' as requested, got 'north'"):
        read_lab_metadata(tmp_path, lab="south")
    assert read_lab_metadata(write_metadata(tmp_path, lab="absent"), lab="south").lab == "south"
    with pytest.raises(LabError, match="lower-case letters"):
        read_lab_metadata(tmp_path, lab="../south")


def test_rejects_unknown_fields():
    with pytest.raises(ValueError, match="Extra inputs"):
        LabMetadata(**METADATA, color="red")


def test_metadata_is_immutable():
    metadata = LabMetadata(**METADATA)
    with pytest.raises(ValueError, match="frozen"):
        metadata.stain = "PAS"


# --- names of images


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


# --- images.csv


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


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [1]\nb: *a",
        "stain: 1\nstain: 2",
        "mpp: !!float x",
        "x: " + "[" * 3000,
        "&a [&b [*a]]",
        "? [1, 2]\n: 3",
        "x" * 2_000_000,
    ],
)
def test_hostile_yaml_is_refused(tmp_path, text):
    (tmp_path / "lab.yaml").write_text(text)
    with pytest.raises(LabError) as caught:
        read_lab_metadata(tmp_path)
    assert len(str(caught.value)) < 2000


def test_dates_are_text(tmp_path):
    write_metadata(tmp_path)
    path = tmp_path / "lab.yaml"
    path.write_text(path.read_text() + "tissue: 2024-13-45\nscanner: 2024-01-02\n")
    metadata = read_lab_metadata(tmp_path)
    assert (metadata.tissue, metadata.scanner) == ("2024-13-45", "2024-01-02")
