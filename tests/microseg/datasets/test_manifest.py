import csv
from dataclasses import astuple, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microseg.datasets.dataset import ManifestRow, read_manifest, write_manifest
from microseg.errors import LabError

ROW = ManifestRow("images/a.png", "masks/a.png", "patient 1", "train", 120, 90, 0.25, "0f" * 32)
HEADER = "image,mask,group,split,width,height,mpp,sha256"
LINE = f"images/a.png,,g,train,1,1,,{'0' * 64}"

names = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/"), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..")
)
rows = st.builds(
    ManifestRow,
    image=names.map("images/{}".format),
    mask=st.none() | names.map("masks/{}".format),
    group=names,
    split=st.sampled_from(["train", "val", "test"]),
    width=st.integers(1, 10**6),
    height=st.integers(1, 10**6),
    mpp=st.none() | st.floats(0.05, 20),
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
)


@given(st.lists(rows, max_size=8, unique_by=lambda row: row.image))
def test_round_trip(tmp_path_factory, written):
    folder = tmp_path_factory.mktemp("lab")
    write_manifest(folder, written)
    assert read_manifest(folder) == tuple(written)
    assert [file.name for file in folder.iterdir()] == ["manifest.csv"]


def test_file_is_plain_csv(tmp_path):
    write_manifest(tmp_path, [ROW, ManifestRow("images/b.png", None, "b", "val", 1, 2, None, "0" * 64)])
    with (tmp_path / "manifest.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == HEADER.split(",") == [field.name for field in fields(ManifestRow)]
    assert list(lines[0].values()) == [str(value) for value in astuple(ROW)]
    assert (lines[1]["mask"], lines[1]["mpp"]) == ("", "")


def test_missing(tmp_path):
    with pytest.raises(LabError, match=r"manifest.csv: expected.*found none"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the columns image,mask"),
        ("image,mask\n", "expected the columns image,mask.*got image,mask"),
        (f"{HEADER}\nimages/a.png\n", "line 2: expected 8 values"),
        (f"{HEADER}\n{LINE},9\n", "line 2: expected 8 values"),
        (f"{HEADER}\n{LINE}\n{LINE}\n", "expected each image once"),
        (f"{HEADER}\n{LINE.replace('train', 'dev')}\n", "split train, val or test, got 'dev'"),
        (f"{HEADER}\n{LINE.replace('1,1', '1,x')}\n", "line 2: .*'x'"),
        (f"{HEADER}\n{LINE.replace('1,1', '1,0')}\n", "width and height above 0"),
        (f"{HEADER}\n{LINE.replace(',g,', ',,')}\n", "a group"),
        (f"{HEADER}\n{LINE.replace('1,1,,', '1,1,-1,')}\n", "mpp above 0"),
        (f"{HEADER}\n{LINE.replace('1,1,,', '1,1,nan,')}\n", "mpp above 0"),
        (f"{HEADER}\n{LINE[:-1]}\n", "64 hexadecimal digits"),
        (f"{HEADER}\n{LINE.replace('images/a.png', '/etc/passwd')}\n", "images/<file name>"),
        (f"{HEADER}\n{LINE.replace('images/a.png', 'images/../../x')}\n", "images/<file name>"),
        (f"{HEADER}\n{LINE.replace('images/a.png', 'images/..')}\n", "images/<file name>"),
        (f"{HEADER}\n{LINE.replace('images/a.png', 'images')}\n", "images/<file name>"),
        (f"{HEADER}\n{LINE.replace('.png,,', '.png,images/a.png,')}\n", "masks/<file name>"),
        (f'{HEADER}\n"open', "expected CSV"),
        (b"\xff\xfe\x00", "expected CSV in UTF-8"),
    ],
)
def test_damaged_manifests_are_refused(tmp_path, text, message):
    (tmp_path / "manifest.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(LabError, match=message):
        read_manifest(tmp_path)


def test_valid_line_of_the_tests_above(tmp_path):
    (tmp_path / "manifest.csv").write_text(f"{HEADER}\n{LINE}\n")
    assert read_manifest(tmp_path) == (ManifestRow("images/a.png", None, "g", "train", 1, 1, None, "0" * 64),)
