"""Slides at an address in datasets and batches."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from microseg.annotations.files import AnnotatedImage
from microseg.annotations.formats import write_annotation
from microseg.annotations.outlines import OutlineBuilder
from microseg.datasets.dataset import open_lab_dataset
from microseg.datasets.fields import FieldRecipe
from microseg.datasets.ingest import ingest_lab
from microseg.datasets.slide_update import SlideOptions
from microseg.errors import ImageReadError, LabError
from microseg.inference.batch import segment_batch
from microseg.synthetic.labs import LAB_A
from microseg.synthetic.slides import SyntheticSlide, generate_slide, outline_region
from tests.http_server import Server
from tests.microseg.slides.test_dicom_and_zarr import MPP, write_zarr

SIDE = 512
SECRET = "correct-horse"


@pytest.fixture(scope="module")
def made() -> SyntheticSlide:
    return generate_slide(LAB_A, SIDE, MPP, 0, tissue=0.7, block=128)


@pytest.fixture
def server(tmp_path: Path, made, same_process: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server(tmp_path / "served")
    write_zarr(server.folder / "s.zarr", made.image)
    monkeypatch.setenv("MICROSEG_ALLOWED_URLS", server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.close()


@pytest.fixture
def source(tmp_path: Path, server: Server, made: SyntheticSlide) -> Path:
    """A lab with a slide at an address, of which a region is annotated."""
    folder = tmp_path / "in"
    (folder / "images").mkdir(parents=True)
    (folder / "lab.yaml").write_text("lab: north\nstain: H&E\nclasses: [background, gland]\n")
    (folder / "images" / "s.zarr.url").write_text(f"{server.url}/s.zarr\n")
    builder = OutlineBuilder()
    outline_region(builder, made.mask, (200, 200, 300, 280), LAB_A.classes)
    image = AnnotatedImage("s.zarr.url", SIDE, SIDE, MPP)
    write_annotation(folder / "images" / "s.geojson", builder.build(), image)
    return folder


def ingest(source: Path, *, reference: bool = False):
    options = SlideOptions(FieldRecipe(fields=6, microns=64), reference)
    return ingest_lab(source, source.parent / "labs", source.parent / "quarantine", slides=options)


@pytest.mark.parametrize("reference", [False, True])
def test_a_slide_at_an_address_is_ingested_and_read_there(source, server, made, reference):
    result = ingest(source, reference=reference)
    assert (result.slides, result.labelled, result.rejected) == (1, 1, ())
    lab = open_lab_dataset(result.folder)
    assert {row.slide for row in lab.rows} == {"s.zarr.url"}
    for row in lab.rows:
        left, top, right, bottom = row.box
        np.testing.assert_array_equal(lab.image(row).read(), made.image[top:bottom, left:right])
    assert (result.folder / "slides" / "s.zarr.url").is_file() is not reference
    assert sum(file.stat().st_size for file in (result.folder / "slides").rglob("*") if file.is_file()) < 1000
    rows = lab.rows
    assert ingest(source, reference=reference).rejected == ()
    assert open_lab_dataset(result.folder).rows == rows


@pytest.mark.parametrize("reference", [False, True])
def test_a_slide_that_changed_at_its_address_is_refused_when_it_is_read(source, server, made, reference):
    lab = open_lab_dataset(ingest(source, reference=reference).folder)
    write_zarr(server.folder / "s.zarr", 255 - made.image)
    with pytest.raises(ImageReadError, match="expected the slide that was ingested, got another content"):
        lab.image(lab.rows[0]).read()
    with pytest.raises(LabError, match="which has other content"):
        ingest(source, reference=reference)


@pytest.mark.parametrize("case", ["not allowed", "password", "gone"])
def test_an_address_that_cannot_be_read_is_rejected_with_the_reason(source, server, monkeypatch, case):
    path = source / "images" / "s.zarr.url"
    if case == "not allowed":
        monkeypatch.setenv("MICROSEG_ALLOWED_URLS", "")
    elif case == "password":
        path.write_text(path.read_text().replace("://", f"://me:{SECRET}@"))
    else:
        path.write_text(f"{server.url}/other.zarr")
    with pytest.raises(LabError, match=r"images/s\.zarr\.url: (http\S+: )?expected") as caught:
        ingest(source)
    reason = {"not allowed": "MICROSEG_ALLOWED_URLS", "password": "without user, password", "gone": "found none"}
    assert reason[case] in str(caught.value)
    assert SECRET not in str(caught.value)
    written = [file for file in (source.parent / "quarantine").rglob("*") if file.suffix in (".csv", ".yaml", ".json")]
    assert written
    assert not any(SECRET in file.read_text() for file in written)
    assert bool(server.requests) == (case == "gone")


def test_a_batch_segments_a_slide_at_an_address(server, made, tmp_path, counting, provenance):
    folder = tmp_path / "batch"
    folder.mkdir()
    for name, text in (("s", f"{server.url}/s.zarr"), ("secret", f"http://me:{SECRET}@127.0.0.1/s.zarr")):
        (folder / f"{name}.zarr.url").write_text(text)
    images = sorted(folder.iterdir())
    out = tmp_path / "out"
    summary = segment_batch(counting, images, out, provenance=provenance)
    assert (summary.done, summary.failed) == (1, 1)
    table = pd.read_csv(summary.summary)
    assert table[["image", "width", "mpp"]].values.tolist() == [["s.zarr.url", SIDE, MPP]]
    assert not any(SECRET.encode() in file.read_bytes() for file in out.rglob("*") if file.is_file())
    assert segment_batch(counting, images, out, provenance=provenance).skipped == 1
    write_zarr(server.folder / "s.zarr", 255 - made.image)  # the address file is as it was
    assert segment_batch(counting, images, out, provenance=provenance).done == 1
