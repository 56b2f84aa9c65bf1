"""Incoming datasets: what has arrived, and whether it is complete."""

import os
from pathlib import Path

import pytest

from microseg.datasets.drop_folder import DropFolder
from microseg.datasets.incoming import read_incoming_folder
from microseg.datasets.manifest import ManifestRow, write_manifest
from microseg.errors import LabError


def test_reads_complete_dataset(lab: Path) -> None:
    incoming = read_incoming_folder(lab)
    assert (incoming.lab, incoming.images, incoming.missing, incoming.folder) == ("lab_c", 1, "", lab)


def test_fingerprint_depends_on_names_sizes_and_times(lab: Path) -> None:
    seen = {read_incoming_folder(lab).fingerprint}
    image = lab / "images" / "a.png"
    for change in (
        lambda: image.write_bytes(b"ab"),
        lambda: os.utime(image, (1, 1)),
        lambda: image.rename(lab / "images" / "b.png"),
        lambda: (lab / "images" / "c.png").write_bytes(b"c"),
        lambda: (lab / "images" / "c.png").unlink() or (lab / "images" / "b.png").rename(lab / "images" / "c.png"),
    ):
        change()
        fingerprint = read_incoming_folder(lab).fingerprint
        assert fingerprint not in seen
        seen.add(fingerprint)


def test_ignores_files_of_the_operating_system(lab: Path) -> None:
    before = read_incoming_folder(lab)
    for name in ("Thumbs.db", ".DS_Store", "images/.hidden.png"):
        (lab / name).write_bytes(b"x")
    assert read_incoming_folder(lab) == before


@pytest.mark.parametrize(
    ("spoil", "missing"),
    [
        (lambda folder: (folder / "lab.yaml").unlink(), "lab.yaml is missing"),
        (lambda folder: (folder / "lab.yaml").write_text("stain: 3"), "lab.yaml"),
        (lambda folder: (folder / "images" / "a.png").unlink(), "images/ has no image yet"),
        (lambda folder: (folder / "images" / "b.png.part").touch(), "b.png.part is being written"),
        (lambda folder: (folder / "images" / "b.TMP").touch(), "b.TMP is being written"),
    ],
)
def test_states_what_is_missing(lab: Path, spoil, missing: str) -> None:
    spoil(lab)
    assert missing in read_incoming_folder(lab).missing


def test_counts_slides(lab: Path) -> None:
    (lab / "images" / "b.svs").write_bytes(b"slide")
    (lab / "images" / "c.NDPI").write_bytes(b"slide")
    (lab / "images" / "c").mkdir()
    (lab / "images" / "c" / "Data0000.dat").write_bytes(b"part")
    incoming = read_incoming_folder(lab)
    assert (incoming.images, incoming.slides, incoming.missing) == (1, 2, "")
    assert incoming.content == "images: 1, whole slides: 2"
    (lab / "images" / "a.png").unlink()
    incoming = read_incoming_folder(lab)
    assert (incoming.images, incoming.slides, incoming.missing) == (0, 2, "")


def test_counts_ome_zarr_as_slides(lab: Path) -> None:
    (lab / "images" / "a.png").unlink()
    for name in ("b.zarr/0/0.0.0", "b.zarr/.zattrs", "b.zarr/.zgroup", "c.zarr/zarr.json", "d.zarr.zip", "e.zarr.url"):
        (lab / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (lab / "images" / name).write_bytes(b"part")
    (lab / "images.csv").write_text("file,group\nb.zarr,1\nc.zarr,2\nd.zarr.zip,3\ne.zarr.url,4\n")
    incoming = read_incoming_folder(lab)
    assert (incoming.images, incoming.slides, incoming.missing) == (0, 4, "")


def test_a_slide_without_its_companions_is_not_complete(lab: Path) -> None:
    (lab / "images" / "a.mrxs").write_bytes(b"slide")
    assert "a.mrxs lacks Slidedat.ini" in read_incoming_folder(lab).missing
    (lab / "images" / "a").mkdir()
    index = "[HIERARCHICAL]\nINDEXFILE = Index.dat\n[DATAFILE]\nFILE_0 = Data0000.dat\n"
    (lab / "images" / "a" / "Slidedat.ini").write_text(index)
    (lab / "images" / "a" / "Index.dat").write_bytes(b"index")
    assert "a.mrxs lacks Data0000.dat" in read_incoming_folder(lab).missing
    (lab / "images" / "a" / "Data0000.dat").write_bytes(b"data")
    assert read_incoming_folder(lab).missing == ""


def test_states_that_slides_are_outside_images(lab: Path) -> None:
    (lab / "slides").mkdir()
    for name in ("slides/a.svs", "b.ndpi"):
        (lab / name).write_bytes(b"slide")
    assert (read_incoming_folder(lab).slides, read_incoming_folder(lab).missing) == (0, "")
    assert read_incoming_folder(lab).content == "images: 1"
    (lab / "images" / "a.png").unlink()
    assert "no image yet; move the whole slides elsewhere (2)" in read_incoming_folder(lab).missing


def test_rejects_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="expected the folder of a lab's images"):
        read_incoming_folder(tmp_path / "lab_x")


# ---- what images.csv names, and links


def test_waits_for_the_files_that_the_table_names(lab: Path, tmp_path: Path) -> None:
    (lab / "images.csv").write_text("file,group\n" + "".join(f"{name}.png,{name}\n" for name in "abcdefg"))
    for name in "bc":
        (lab / "images" / f"{name}.png").write_bytes(b"x")
    message = "images.csv names 7 files, of which 4 are not in images/ yet (d.png, e.png, f.png …)"
    assert message in read_incoming_folder(lab).missing
    dataset = tmp_path / "labs" / "lab_c"  # it has four of them already
    dataset.mkdir(parents=True)
    rows = [ManifestRow(f"images/{name}.png", None, name, "train", 9, 9, None, name * 64) for name in "abde"]
    write_manifest(dataset, rows)
    assert "2 are not in images/ yet (f.png, g.png)" in read_incoming_folder(lab, labs=dataset.parent).missing
    for name in "fg":
        (lab / "images" / f"{name}.PNG").write_bytes(b"x")
    assert read_incoming_folder(lab, labs=dataset.parent).missing == ""


def test_links_to_an_allowed_folder_are_followed(lab: Path, tmp_path: Path) -> None:
    share = tmp_path / "share" / "scans"
    share.mkdir(parents=True)
    for name in ("x.png", "y.png"):
        (share / name).write_bytes(b"x")
    (lab / "images" / "x.png").symlink_to(share / "x.png")
    (lab / "images" / "a.png").unlink()
    assert read_incoming_folder(lab, roots=[tmp_path / "share"]).images == 1
    (lab / "images" / "x.png").unlink()
    (lab / "images").rmdir()
    (lab / "images").symlink_to(share)
    incoming = read_incoming_folder(lab, roots=[tmp_path / "share"])
    assert (incoming.images, incoming.missing) == (2, "")
    (share / "loop").symlink_to(lab)
    assert read_incoming_folder(lab, roots=[tmp_path / "share"]).images == 2


@pytest.mark.parametrize("kind", ["file", "folder", "dataset", "nothing"])
def test_other_links_are_refused_with_the_reason(lab: Path, tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "b.png").write_bytes(b"x")
    reason = f"is a link to {secret}"
    drop_folder = DropFolder(lab.parent, 0)
    if kind == "file":
        (lab / "images" / "b.png").symlink_to(secret / "b.png")
    elif kind == "folder":
        (lab / "masks").symlink_to(secret)
    elif kind == "dataset":
        (lab.parent / "lab_d").symlink_to(secret)
    else:
        (lab / "images" / "b.png").symlink_to(secret / "gone.png")
    drop_folder.poll(0)
    found = {incoming.folder.name: incoming.missing for incoming in drop_folder.poll(1)}
    missing = found["lab_d" if kind == "dataset" else "lab_c"]
    assert reason in missing
    assert ("which is not there" if kind == "nothing" else "add the folder to data.allowed_roots") in missing


def test_names_in_any_encoding_are_part_of_the_fingerprint(lab: Path) -> None:
    before = read_incoming_folder(lab).fingerprint
    for name in (b"f\xe9vrier.png", b"a\nb.png", "\u67d3\u8272.png".encode(), b"-rf=.png", b"x" * 251 + b".png"):
        (lab / "images" / os.fsdecode(name)).write_bytes(b"x")
        incoming = read_incoming_folder(lab)
        assert incoming.fingerprint != before
        before = incoming.fingerprint
    assert (incoming.images, incoming.missing) == (6, "")
