import csv
import hashlib
from collections import Counter
from dataclasses import astuple, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microseg.datasets.dataset import assign_splits, open_lab_dataset
from microseg.datasets.lab import LabMetadata, write_lab_metadata
from microseg.datasets.manifest import ManifestRow, read_manifest, write_manifest
from microseg.errors import DataError, LabError


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "north"
    for name in ("images/a.png", "images/b.png", "images/c.png", "masks/a.png", "masks/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    write_lab_metadata(folder, LabMetadata(lab="north", stain="H&E", classes=("background", "gland"), labelled=True))
    write_manifest(
        folder,
        [
            ManifestRow("images/a.png", "masks/a.png", "a", "train", 8, 8, None, "0" * 64),
            ManifestRow("images/b.png", None, "b", "train", 8, 8, None, "1" * 64),
            ManifestRow("images/c.png", "masks/c.png", "c", "test", 8, 8, None, "2" * 64),
        ],
    )
    return folder


def names(rows):
    return "".join(row.image[len("images/")] for row in rows)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({}, "abc"),
        ({"split": "train"}, "ab"),
        ({"split": "val"}, ""),
        ({"labelled": True}, "ac"),
        ({"labelled": False}, "b"),
        ({"split": "train", "labelled": True}, "a"),
        ({"split": "test", "labelled": False}, ""),
    ],
)
def test_select(folder, choice, expected):
    assert names(open_lab_dataset(folder).select(**choice)) == expected


def test_paths(folder):
    lab = open_lab_dataset(str(folder))
    assert lab.metadata.lab == "north"
    assert lab.image_path(lab.rows[0]) == folder / "images" / "a.png"
    assert lab.mask_path(lab.rows[0]) == folder / "masks" / "a.png"
    with pytest.raises(LabError, match=r"expected a mask for images/b.png"):
        lab.mask_path(lab.rows[1])


def test_missing_folder(tmp_path):
    with pytest.raises(LabError, match="expected the dataset of a lab"):
        open_lab_dataset(tmp_path / "none")


@pytest.mark.parametrize("name", ["lab.yaml", "manifest.csv", "images/b.png", "masks/c.png"])
def test_error_names_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(LabError, match=name):
        open_lab_dataset(folder)


def test_many_missing_files_are_counted(folder):
    for path in (*folder.glob("images/*"), *folder.glob("masks/*")):
        path.unlink()
    with pytest.raises(LabError, match=r"images/a.png, masks/a.png, images/b.png and 2 more"):
        open_lab_dataset(folder)


def test_empty_manifest(folder):
    write_manifest(folder, [])
    with pytest.raises(LabError, match="expected images in the manifest"):
        open_lab_dataset(folder)


# --- the manifest


ROW = ManifestRow("images/a.png", "masks/a.png", "patient 1", "train", 120, 90, 0.25, "0f" * 32)
HEADER = "image,mask,group,split,width,height,mpp,sha256"
LINE = f"images/a.png,,g,train,1,1,,{'0' * 64}"

file_names = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/"), min_size=1, max_size=20
).filter(lambda name: name not in (".", ".."))
rows = st.builds(
    ManifestRow,
    image=file_names.map("images/{}.png".format),
    mask=st.none() | file_names.map("masks/{}.png".format),
    group=file_names,
    split=st.sampled_from(["train", "val", "test"]),
    width=st.integers(1, 10**6),
    height=st.integers(1, 10**6),
    mpp=st.none() | st.floats(0.05, 20),
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
)


@given(st.lists(rows, max_size=8, unique_by=lambda row: row.image))
def test_manifest_round_trip(tmp_path_factory, written):
    folder = tmp_path_factory.mktemp("lab")
    write_manifest(folder, written)
    assert read_manifest(folder) == tuple(written)
    assert [file.name for file in folder.iterdir()] == ["manifest.csv"]


def test_manifest_is_plain_csv(tmp_path):
    write_manifest(tmp_path, [ROW, ManifestRow("images/b.png", None, "b", "val", 1, 2, None, "0" * 64)])
    with (tmp_path / "manifest.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == HEADER.split(",") == [field.name for field in fields(ManifestRow)][:-3]
    assert list(lines[0].values()) == [str(value) for value in astuple(ROW)][:-3]
    assert (lines[1]["mask"], lines[1]["mpp"]) == ("", "")


def test_manifest_of_slides_has_the_places_of_fields(tmp_path):
    row = ManifestRow("slides/a.svs", None, "a", "val", 512, 256, 0.5, "0" * 64, x=1024, y=0, cluster=3)
    write_manifest(tmp_path, [ROW, row])
    assert read_manifest(tmp_path) == (ROW, row)
    assert (row.name, row.box, row.slide) == ("a_1024_0_512x256", (1024, 0, 1536, 256), "a.svs")


def test_missing_manifest(tmp_path):
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
        (f"{HEADER}\n{LINE.replace('train', 'dev')}\n", "line 2, split: .*'train', 'val' or 'test', got 'dev'"),
        (f"{HEADER}\n{LINE.replace('1,1', '1,x')}\n", "line 2, height: .*integer.*'x'"),
        (f"{HEADER}\n{LINE.replace('1,1', '1,0')}\n", "line 2, height: .*greater than 0, got '0'"),
        (f"{HEADER}\n{LINE.replace(',g,', ',,')}\n", "line 2, group: "),
        (f"{HEADER}\n{LINE.replace('1,1,,', '1,1,-1,')}\n", "line 2, mpp: .*greater than 0"),
        (f"{HEADER}\n{LINE.replace('1,1,,', '1,1,nan,')}\n", "line 2, mpp: .*finite number"),
        (f"{HEADER}\n{LINE[:-1]}\n", r"line 2, sha256: .*\{64\}"),
        (f"{HEADER}\n{LINE.replace('images/a.png', '/etc/passwd')}\n", "line 2, image: .*pattern"),
        (f"{HEADER}\n{LINE.replace('images/a.png', 'images/../../x')}\n", "line 2, image: .*pattern"),
        (f"{HEADER}\n{LINE.replace('images/a.png', 'images/../x.png')}\n", "line 2, image: .*pattern"),
        (f"{HEADER}\n{LINE.replace('images/a.png', 'images/..')}\n", "line 2, image: .*pattern"),
        (f"{HEADER}\n{LINE.replace('images/a.png', 'images')}\n", "line 2, image: .*pattern"),
        (f"{HEADER}\n{LINE.replace('.png,,', '.png,images/a.png,')}\n", "line 2, mask: .*pattern"),
        (f'{HEADER}\n"open', "expected CSV"),
        (b"\xff\xfe\x00", "expected CSV in UTF-8"),
    ],
)
def test_rejects_damaged_manifests(tmp_path, text, message):
    (tmp_path / "manifest.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(LabError, match=message):
        read_manifest(tmp_path)


def test_valid_line_of_the_tests_above(tmp_path):
    (tmp_path / "manifest.csv").write_text(f"{HEADER}\n{LINE}\n")
    assert read_manifest(tmp_path) == (ManifestRow("images/a.png", None, "g", "train", 1, 1, None, "0" * 64),)


# --- splits


groups = st.sets(st.text(max_size=8), max_size=30)
fractions = st.floats(0, 0.49)


def by_hash(names, val, test, seed):
    """Splits by the hash alone, computed independently."""
    positions = {name: int(hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()[:16], 16) / 16**16 for name in names}
    return {name: "test" if x < test else "val" if x < test + val else "train" for name, x in positions.items()}


@given(groups, fractions, fractions, st.integers())
def test_no_split_is_empty_where_possible(names, val, test, seed):
    splits = assign_splits(names, val_fraction=val, test_fraction=test, seed=seed)
    found = set(splits.values())
    assert splits.keys() == names
    assert ("train" in found) == (len(names) >= 1)
    if val > 0 and len(names) >= 2:
        assert "val" in found
    if test > 0 and len(names) >= 3:
        assert "test" in found
    if val == 0:
        assert "val" not in found
    if test == 0:
        assert "test" not in found


@given(groups, st.integers(), st.randoms())
def test_order_and_repetition_do_not_matter(names, seed, random):
    shuffled = [*names, *names]
    random.shuffle(shuffled)
    options = {"val_fraction": 0.2, "test_fraction": 0.2, "seed": seed}
    assert assign_splits(shuffled, **options) == assign_splits(sorted(names), **options)


@given(groups, groups, st.integers())
def test_existing_splits_never_change(before, more, seed):
    options = {"val_fraction": 0.2, "test_fraction": 0.2, "seed": seed}
    first = assign_splits(before, **options)
    later = assign_splits(before | more, **options, existing=first)
    assert first.items() <= later.items()
    assert later.keys() == before | more


@given(st.sets(st.integers(0, 10**6).map(str), min_size=30, max_size=60), st.integers(0, 5))
def test_more_groups_do_not_move_earlier_ones(names, seed):
    options = {"val_fraction": 0.3, "test_fraction": 0.3, "seed": seed}
    first = assign_splits(names, **options)
    later = assign_splits(names | {"new 1", "new 2", "new 3"}, **options)
    moved = [name for name in names if first[name] != later[name]]
    assert len(moved) <= 2  # at most one for each split that chance had left empty


def test_splits_are_those_of_the_hash_where_none_is_empty():
    names = {f"patient {i}" for i in range(40)}
    splits = assign_splits(names, val_fraction=0.25, test_fraction=0.25, seed=3)
    assert splits == by_hash(names, 0.25, 0.25, 3)


def test_fractions_hold_on_average():
    counts = Counter(assign_splits(map(str, range(4000)), val_fraction=0.2, test_fraction=0.1, seed=0).values())
    # binomial standard deviations are 25 and 19; five of them
    assert counts["val"] == pytest.approx(800, abs=125)
    assert counts["test"] == pytest.approx(400, abs=95)


def test_seed_changes_the_assignment():
    names = [str(i) for i in range(50)]
    first, second = (assign_splits(names, val_fraction=0.3, test_fraction=0.3, seed=seed) for seed in (0, 1))
    assert first != second


def test_assignment_is_the_same_on_every_machine():
    splits = assign_splits(["a", "b", "c", "d"], val_fraction=0.25, test_fraction=0.25, seed=0)
    # the hashes put a at 0.617, b at 0.876, c at 0.742, d at 0.491: none below 0.25, so the test gets the nearest, a
    assert splits == {"a": "test", "b": "train", "c": "train", "d": "val"}


def test_new_group_fills_an_empty_split():
    existing = {"a": "train", "b": "train"}
    splits = assign_splits(["c"], val_fraction=0.01, test_fraction=0, seed=0, existing=existing)
    assert splits == {"a": "train", "b": "train", "c": "val"}


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.2), (0.5, 0.5), (0.9, 0.2), (float("nan"), 0.1)])
def test_rejects_invalid_fractions(val, test):
    with pytest.raises(DataError, match="Lower them"):
        assign_splits(["a"], val_fraction=val, test_fraction=test, seed=0)
