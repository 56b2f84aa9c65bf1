"""Slides in an incoming dataset: fields, labels of annotated regions, corrections, and what is refused."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from microseg.annotations.files import AnnotatedImage
from microseg.annotations.formats import write_annotation
from microseg.annotations.index_masks import IGNORE, read_mask
from microseg.annotations.outlines import OutlineBuilder
from microseg.datasets import slide_update
from microseg.datasets.dataset import open_lab_dataset
from microseg.datasets.fields import FieldRecipe
from microseg.datasets.ingest import ingest_lab
from microseg.datasets.slide_update import SlideOptions
from microseg.errors import ImageReadError, LabError
from microseg.slides.identity import source_sha256
from microseg.slides.images import write_png
from microseg.synthetic.labs import LAB_A
from microseg.synthetic.slides import generate_slide, outline_region, write_pyramid

SIDE = 1024
RECIPE = FieldRecipe(fields=6, microns=256)


@pytest.fixture(scope="module")
def made():
    return [generate_slide(LAB_A, SIDE, 1.0, seed, tissue=0.4, block=128) for seed in range(3)]


@pytest.fixture(scope="module")
def written(tmp_path_factory, made):
    folder = tmp_path_factory.mktemp("written") / "in"
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    (folder / "lab.yaml").write_text("lab: north\nstain: H&E\nclasses: [background, gland]\n")
    for number in (0, 1):
        write_pyramid(folder / "images" / f"s{number}.svs", made[number].image, 1.0)
    write_png(folder / "images" / "plain.png", made[2].image[400:600, 400:600])
    outline(folder, "s0", made[0], [(400, 400, 500, 480), (600, 500, 700, 600)])
    return folder


@pytest.fixture
def source(tmp_path, written):
    """Two slides with two annotated regions on the first, and an image."""
    return shutil.copytree(written, tmp_path / "in")


def outline(folder, name, slide, regions):
    builder = OutlineBuilder()
    for region in regions:
        outline_region(builder, slide.mask, region, LAB_A.classes)
    write_annotation(
        folder / "annotations" / f"{name}.geojson", builder.build(), AnnotatedImage(f"{name}.svs", SIDE, SIDE, 1.0)
    )


@pytest.fixture
def ingest(tmp_path):
    def ingest(source, *, reference=False, **options):
        slides = SlideOptions(RECIPE, reference)
        result = ingest_lab(source, tmp_path / "labs", tmp_path / "quarantine", slides=slides, **options)
        return result, open_lab_dataset(result.folder)

    return ingest


def reasons(tmp_path):
    with (tmp_path / "quarantine" / "north" / "reasons.csv").open(newline="") as file:
        return {line["file"]: line["reason"] for line in csv.DictReader(file)}


def labels(lab, side=SIDE):
    """Labels of all fields on the slide, and how many fields know each pixel."""
    found, count = np.full((side, side), IGNORE, np.uint8), np.zeros((side, side), int)
    for row in lab.select(labelled=True):
        mask = read_mask(lab.mask_path(row))
        left, top, right, bottom = row.box
        known = mask != IGNORE
        found[top:bottom, left:right][known] = mask[known]
        count[top:bottom, left:right] += known
    return found, count


def test_ingests_slides_and_images_mixed(source, ingest, made):
    result, lab = ingest(source)
    assert (result.images, result.slides, result.labelled, result.rejected) == (3, 2, 1, ())
    assert {row.image for row in lab.rows} == {"images/plain.png", "slides/s0.svs", "slides/s1.svs"}
    for row in lab.rows:
        assert row.split == {it.group: it.split for it in lab.rows}[row.group]  # a slide is on one side
        if row.slide:
            number = int(row.group[-1])
            left, top, right, bottom = row.box
            shown, true = lab.image(row).read(), made[number].image[top:bottom, left:right]
            assert np.abs(shown.astype(int) - true).mean() < 6  # JPEG
    record = json.loads((result.folder / "slides.json").read_text())
    assert record["recipe"] == {"fields": 6, "microns": 256.0, "seed": 0}
    slide = record["slides"][0]
    assert slide["sha256"] == source_sha256(source / "images" / "s0.svs")
    assert (slide["mpp"], slide["levels"]) == (1.0, [[1024, 1024], [512, 512], [256, 256]])
    assert slide["tissue_mm2"] == pytest.approx(0.4 * 1.024**2, rel=0.15)


def test_annotated_regions_are_the_labelled_area(source, ingest, made):
    _, lab = ingest(source)
    found, count = labels(lab)
    known = np.zeros((SIDE, SIDE), bool)
    known[400:480, 400:500] = known[500:600, 600:700] = True
    np.testing.assert_array_equal(found != IGNORE, known)
    np.testing.assert_array_equal(found[known], made[0].mask[known])
    assert count.max() == 1  # no pixel counts twice
    assert all(lab.instances_path(row) for row in lab.select(labelled=True))


def test_fields_without_labels_show_tissue(source, ingest, made):
    _, lab = ingest(source)
    for row in lab.select(labelled=False):
        if row.slide:
            left, top, right, bottom = row.box
            assert (made[int(row.group[-1])].image[top:bottom, left:right] != 244).any(2).mean() > 0.2
    assert 3 < sum(row.slide == "s1.svs" for row in lab.rows) <= RECIPE.fields


def test_is_the_same_again_for_the_same_seed(source, ingest, tmp_path):
    _, lab = ingest(source)
    again = ingest_lab(source, tmp_path / "other", tmp_path / "q", slides=SlideOptions(RECIPE))
    assert open_lab_dataset(again.folder).rows == lab.rows
    other = ingest_lab(source, tmp_path / "third", tmp_path / "q", slides=SlideOptions(replace(RECIPE, seed=1)))
    assert open_lab_dataset(other.folder).rows != lab.rows


def test_unchanged_slides_are_not_read_again(source, ingest, monkeypatch):
    ingest(source)
    monkeypatch.setattr(slide_update, "check_slide", lambda *_: pytest.fail("it was checked again"))
    monkeypatch.setattr(slide_update, "read_labels", lambda *_: pytest.fail("its labels were read again"))
    result, _ = ingest(source)
    assert (result.unchanged, result.added, result.relabelled) == (3, 0, 0)


def test_slide_in_the_dataset_survives_the_incoming_one(source, ingest):
    _, lab = ingest(source)
    (source / "images" / "s0.svs").unlink()
    assert lab.image(next(row for row in lab.rows if row.slide == "s0.svs")).read().shape == (256, 256, 3)


def test_corrections_replace_labels_where_they_are_known(source, ingest, made):
    _, before = ingest(source)
    corrected = made[0].mask.copy()
    corrected[420:460, 420:480] = 1 - corrected[420:460, 420:480]
    wider = (400, 400, 560, 480)  # a corrected region that reaches beyond the earlier one
    outline(source, "s0", made[0]._replace(mask=corrected), [wider])
    result, lab = ingest(source)
    assert result.relabelled == 1
    found, count = labels(lab)
    known = np.zeros((SIDE, SIDE), bool)
    known[400:480, 400:560] = known[500:600, 600:700] = True
    np.testing.assert_array_equal(found != IGNORE, known)
    np.testing.assert_array_equal(found[400:480, 400:560], corrected[400:480, 400:560])
    np.testing.assert_array_equal(found[500:600, 600:700], made[0].mask[500:600, 600:700])
    assert count.max() == 1
    assert {row.split for row in lab.rows if row.slide == "s0.svs"} == {
        row.split for row in before.rows if row.slide == "s0.svs"
    }


def test_labels_may_follow(source, ingest, made):
    ingest(source)
    outline(source, "s1", made[1], [(450, 450, 520, 520)])
    result, lab = ingest(source)
    assert (result.relabelled, result.labelled) == (1, 2)
    assert {row.slide for row in lab.select(labelled=True)} == {"s0.svs", "s1.svs"}


def test_a_reference_stays_and_is_checked_when_read(source, ingest, made):
    result, lab = ingest(source, reference=True)
    assert not (result.folder / "slides").exists()
    row = next(row for row in lab.rows if row.slide == "s1.svs")
    assert lab.image(row).path == (source / "images" / "s1.svs").resolve()
    assert lab.image(row).read().shape == (256, 256, 3)
    write_pyramid(source / "images" / "s1.svs", made[2].image, 1.0)
    with pytest.raises(ImageReadError, match="expected the slide that was ingested"):
        lab.image(row).read()


def test_groups_of_the_table_are_patients(source, ingest):
    (source / "images.csv").write_text("file,group,mpp\ns0.svs,p7,\ns1.svs,p7,\n")
    _, lab = ingest(source)
    assert {row.group for row in lab.rows if row.slide} == {"p7"}
    assert len({row.split for row in lab.rows if row.mask is None and row.slide}) == 1


def test_rejects_what_is_no_sound_slide(source, ingest, made, tmp_path):
    images = source / "images"
    whole = (images / "s1.svs").read_bytes()
    (images / "cut.svs").write_bytes(whole[: len(whole) * 2 // 3])
    write_pyramid(images / "unsized.svs", made[2].image, None)
    write_pyramid(images / "glass.svs", np.full((SIDE, SIDE, 3), 244, np.uint8), 1.0)
    (images / "same.svs").write_bytes(whole)
    (images / "half.mrxs").write_bytes(b"x")
    (images / "half").mkdir()
    (images / "half" / "Slidedat.ini").write_text(
        "[HIERARCHICAL]\nINDEXFILE = Index.dat\n[DATAFILE]\nFILE_COUNT = 2\nFILE_0 = Data0000.dat\nFILE_1 = D1.dat\n"
    )
    (images / "half" / "Data0000.dat").write_bytes(b"x")
    result, _ = ingest(source)
    found = reasons(tmp_path)
    assert "was cut off" in found["images/cut.svs"] or "recognizes" in found["images/cut.svs"]
    assert "states its pixel size" in found["images/unsized.svs"]
    assert "expected tissue" in found["images/glass.svs"]
    assert "content of" in found["images/same.svs"] or "content of" in found.get("images/s1.svs", "")
    assert "missing Index.dat, D1.dat" in found["images/half.mrxs"]
    assert len(result.rejected) == 5
    assert {file.slide for file in result.rejected} == {file.file for file in result.rejected}


def test_a_stated_pixel_size_is_enough(source, ingest, made):
    write_pyramid(source / "images" / "unsized.svs", made[2].image, None)
    (source / "images.csv").write_text("file,mpp\nunsized.svs,1.0\n")
    result, lab = ingest(source)
    assert not result.rejected
    assert {row.mpp for row in lab.rows if row.slide} == {1.0}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b'{"type": "FeatureCollection", "features": []}', "expected outlines, got none"),
        (b"{" * 5000, "JSON"),
        (b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "b">]><Annotations>&b;</Annotations>', ""),
        ('{"type": "Feature"'.encode("utf-16"), ""),
    ],
)
def test_rejects_a_slide_with_its_broken_annotation(source, ingest, tmp_path, content, reason):
    (source / "annotations" / "s1.geojson").write_bytes(content)
    result, lab = ingest(source)
    found = reasons(tmp_path)
    assert found.keys() == {"images/s1.svs", "annotations/s1.geojson"}
    assert reason in found["annotations/s1.geojson"]
    assert found["images/s1.svs"].startswith("its annotation s1.geojson is rejected: ")
    assert not any(row.slide == "s1.svs" for row in lab.rows)  # not silently without labels
    assert not (result.folder / "slides" / "s1.svs").exists()


def test_rejects_the_annotation_of_another_slide(source, ingest, tmp_path):
    far = [[[(5000, 5000), (5400, 5000), (5400, 5300), (5000, 5300)]]]
    builder = OutlineBuilder()
    builder.add("Region*", far)
    builder.add("gland", far)
    image = AnnotatedImage("s1.svs", 9000, 9000, 1.0)
    write_annotation(source / "annotations" / "s1.geojson", builder.build(), image)
    ingest(source)
    assert "another image or level" in reasons(tmp_path)["annotations/s1.geojson"]


def draw(folder, name, squares):
    """Annotated regions with a gland in each."""
    builder = OutlineBuilder()
    for left, top in squares:
        for kind, inset in (("Region*", 0), ("gland", 20)):
            low, high = inset, 100 - inset
            corners = [(low, low), (high, low), (high, high), (low, high)]
            builder.add(kind, [[[(left + x, top + y) for x, y in corners]]])
    image = AnnotatedImage(f"{name}.svs", SIDE, SIDE, 1.0)
    write_annotation(folder / "annotations" / f"{name}.geojson", builder.build(), image)


@pytest.mark.parametrize("before", [False, True])  # whether the slide is in the dataset already
def test_outlines_on_bare_glass_are_refused(source, ingest, made, tmp_path, before):
    if before:
        (source / "annotations" / "s0.geojson").unlink()
        ingest(source)
    tissue = [place[:2] for place in made[0].tissue]
    for squares in ([(10, 10), (SIDE - 120, 10)], [(10, 10), tissue[0]]):  # on the other slide half of them met tissue
        draw(source, "s0", squares)
        _, lab = ingest(source)
        assert "show bare glass: they are of another slide" in reasons(tmp_path)["annotations/s0.geojson"]
        assert not lab.select(labelled=True)
    draw(source, "s0", [(10, 10), tissue[0], tissue[-1]])
    result, lab = ingest(source)
    assert any("s0.geojson: 1 of 3 annotated regions with outlines show bare glass" in it for it in result.notes)
    assert lab.select(labelled=True)


def test_an_empty_region_may_be_on_glass(source, ingest):
    outline(source, "s0", generate_slide(LAB_A, SIDE, 1.0, 0, tissue=0.01, block=128), [(10, 10, 110, 90)])
    result, lab = ingest(source)
    assert not result.rejected
    assert set(np.unique(labels(lab)[0])) == {0, IGNORE}


def test_new_content_under_the_name_of_a_slide_is_refused(source, ingest, made, tmp_path):
    ingest(source)
    write_pyramid(source / "images" / "s1.svs", made[2].image, 1.0)
    ingest(source)
    assert "expected a new name" in reasons(tmp_path)["images/s1.svs"]


def test_raises_where_no_slide_is_accepted(source, ingest):
    for path in (*(source / "images").glob("s*"), *(source / "annotations").iterdir()):
        path.unlink()
    (source / "images" / "plain.png").unlink()
    (source / "images" / "a.svs").write_bytes(b"II*\0")
    with pytest.raises(LabError, match="at least one usable image"):
        ingest(source)
    assert not Path(source.parent / "labs" / "north").exists()
