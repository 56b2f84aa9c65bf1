import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from microseg.datasets.lab import LAB_FILE_TEMPLATE, LabMetadata, check_lab_name, read_lab_metadata, write_lab_metadata
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
