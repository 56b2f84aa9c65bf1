"""Versions of datasets with slides: no copies within a file system, one history for several machines."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from microseg.datasets.dataset import LabDataset, open_lab_dataset
from microseg.datasets.fields import FieldRecipe
from microseg.datasets.ingest import ingest_lab
from microseg.datasets.slide_update import SlideOptions
from microseg.datasets.versions import file_hashes
from microseg.datasets.versions.store import DatasetStore
from microseg.synthetic.labs import LAB_A
from microseg.synthetic.slides import generate_slide, write_pyramid

RECIPE = FieldRecipe(fields=2, microns=256)


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> Path:
    """Two slides."""
    folder = tmp_path_factory.mktemp("slides")
    for seed in range(2):
        write_pyramid(folder / f"s{seed}.svs", generate_slide(LAB_A, 768, 1.0, seed, block=128).image, 1.0)
    return folder


def incoming(folder: Path, *slides: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    (folder / "lab.yaml").write_text("lab: north\nstain: H&E\nclasses: [background, gland]\n")
    for slide in slides:
        shutil.copy(slide, folder / "images")
    return folder


def ingest(source: Path, store: DatasetStore, *, reference: bool = False) -> LabDataset:
    result = ingest_lab(source, store.labs, store.root / "quarantine", slides=SlideOptions(RECIPE, reference))
    assert not result.rejected
    return open_lab_dataset(result.folder)


def size(folder: Path) -> int:
    """Bytes on the disk; a file with several names counts once."""
    found = {(it.st_dev, it.st_ino): it.st_size for it in (path.stat() for path in folder.rglob("*") if path.is_file())}
    return sum(found.values())


def test_home_has_each_slide_once(tmp_path, slides):
    source = incoming(tmp_path / "in", slides / "s0.svs", slides / "s1.svs")
    before = {path: (path.stat().st_mode, path.read_bytes()) for path in (source / "images").iterdir()}
    store = DatasetStore(tmp_path / "home", None)
    ingest(source, store)
    version = store.commit("north")
    store.checkout("north", version.digest)
    assert size(tmp_path / "home") < 1.1 * size(source / "images") + 300_000  # DVC's own databases
    assert {path: (path.stat().st_mode, path.read_bytes()) for path in before} == before
    assert store.commit("north") == version


def test_a_referenced_slide_is_not_in_home(tmp_path, slides):
    source = incoming(tmp_path / "in", slides / "s0.svs", slides / "s1.svs")
    store = DatasetStore(tmp_path / "home", None)
    ingest(source, store, reference=True)
    lab = open_lab_dataset(store.checkout("north", store.commit("north").digest))
    assert not [path for path in (tmp_path / "home").rglob("*") if path.suffix == ".svs"]
    assert lab.image(lab.rows[0]).read().shape == (256, 256, 3)


def test_a_second_machine_continues_the_history(tmp_path, slides):
    one, two = (DatasetStore(tmp_path / name, str(tmp_path / "remote")) for name in ("one", "two"))
    first = ingest(incoming(tmp_path / "in1", slides / "s0.svs"), one)
    one.commit("north")
    assert two.ensure_current("north")
    ingest(incoming(tmp_path / "in2", slides / "s1.svs"), two)
    version = two.commit("north")
    assert version.number == 2
    assert one.ensure_current("north")
    lab = open_lab_dataset(one.labs / "north")
    assert {row.slide for row in lab.rows} == {"s0.svs", "s1.svs"}
    assert {row.split for row in lab.rows if row.slide == "s0.svs"} == {row.split for row in first.rows}
    pixels = lab.image(next(row for row in lab.rows if row.slide == "s1.svs")).read()
    assert np.ptp(pixels) > 50


def test_slides_are_hashed_once(tmp_path, slides, monkeypatch):
    monkeypatch.setattr(file_hashes, "_LARGE", 0)
    source = incoming(tmp_path / "in", slides / "s0.svs")
    for path in (source / "images").iterdir():
        os.utime(path, (1e9, 1e9))  # long ago
    store = DatasetStore(tmp_path / "home", None)
    ingest(source, store)
    version = store.commit("north")
    file_hashes._hashed.clear()  # as in another process
    store.checkout("north", version.digest)
    monkeypatch.setattr(file_hashes, "file_digest", lambda *_: pytest.fail("hashed again"))
    assert store.commit("north") == version


def test_a_damaged_slide_of_the_cache_is_fetched_again(tmp_path, slides):
    remote = tmp_path / "remote"
    store = DatasetStore(tmp_path / "home", str(remote))
    ingest(incoming(tmp_path / "in", slides / "s0.svs"), store)
    version = store.commit("north")
    content = (slides / "s0.svs").read_bytes()
    for path in [*(tmp_path / "home").rglob("*"), *remote.rglob("*")]:
        if path.is_file() and path.stat().st_size == len(content):
            copy = path.with_name("copy")  # of its own, as on another disk
            shutil.copy(path, copy)
            copy.replace(path)
    (cached,) = [
        it
        for it in (tmp_path / "home" / ".dvc" / "cache").rglob("*")
        if it.is_file() and it.stat().st_size == len(content)
    ]
    cached.write_bytes(content[:-1] + b"?")
    checked_out = store.checkout("north", version.digest)
    assert (checked_out / "slides" / "s0.svs").read_bytes() == content
