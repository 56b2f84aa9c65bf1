"""Labs whose labels are outlines, instance masks or masks of other kinds, from their folder to the dataset."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from microseg.annotations.classes import IGNORE
from microseg.annotations.index_masks import read_mask
from microseg.annotations.instance_masks import read_instances
from microseg.datasets.dataset import LabDataset, open_lab_dataset
from microseg.datasets.ingest import IngestResult, ingest_lab
from microseg.datasets.lab import read_lab_metadata
from microseg.errors import LabError
from microseg.slides.images import write_png

LAB = "lab: north\nstain: H&E\nclasses: {gland: [Gland, 'gland, benign']}\n"


def make_lab(folder: Path, count: int = 4, stated: str = "") -> Path:
    (folder / "images").mkdir(parents=True)
    for seed in range(count):
        pixels = np.random.default_rng(seed).integers(0, 256, (32, 48, 3), dtype=np.uint8)
        write_png(folder / "images" / f"im{seed}.png", pixels)
    (folder / "lab.yaml").write_text(LAB + stated)
    return folder


def write_geojson(path: Path, *objects: tuple[str, tuple[int, int, int, int]]) -> None:
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]},
            "properties": {"objectType": "annotation", "classification": {"name": name}},
        }
        for name, (x0, y0, x1, y1) in objects
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def ingest(source: Path, tmp_path: Path) -> tuple[IngestResult, LabDataset]:
    result = ingest_lab(source, tmp_path / "labs", tmp_path / "quarantine")
    return result, open_lab_dataset(result.folder)


def labels(dataset: LabDataset, name: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32] | None]:
    (row,) = (row for row in dataset.rows if row.image == f"images/{name}.png")
    instances = dataset.instances_path(row)
    return read_mask(dataset.mask_path(row)), None if instances is None else read_instances(instances)


def test_regions_become_labels_and_all_else_is_ignored(tmp_path: Path) -> None:
    source = make_lab(tmp_path / "in")
    region = ("Region*", (4, 4, 40, 28))
    write_geojson(source / "annotations" / "im0.geojson", region, ("Gland", (6, 6, 12, 12)), ("gland", (12, 6, 20, 12)))
    write_geojson(source / "images" / "im1.json", region, ("gland, benign", (0, 0, 10, 10)))
    result, dataset = ingest(source, tmp_path)
    assert (result.images, result.labelled, result.rejected) == (4, 2, ())
    expected = np.full((32, 48), IGNORE, np.uint8)
    expected[4:28, 4:40] = 0
    expected[6:12, 6:20] = 1
    mask, instances = labels(dataset, "im0")
    assert np.array_equal(mask, expected)
    assert instances is not None
    assert sorted(np.unique(instances).tolist()) == [0, 1, 2]  # two objects that touch stay two
    assert (labels(dataset, "im1")[0] == 1).sum() == 36
    assert dataset.metadata.classes == ("background", "gland")
    assert dataset.metadata == read_lab_metadata(result.folder)


def test_other_json_beside_an_image_is_no_annotation(tmp_path: Path) -> None:
    source = make_lab(tmp_path / "in")
    (source / "images" / "im0.json").write_text('{"exposure": 12}')
    (source / "images" / "im1.geojson").write_text('{"type": "FeatureCol')
    result, _ = ingest(source, tmp_path)
    assert {file.file for file in result.rejected} == {"images/im0.json", "images/im1.geojson", "images/im1.png"}


def test_unknown_names_are_in_the_reason_with_the_line_to_add(tmp_path: Path) -> None:
    source = make_lab(tmp_path / "in")
    write_geojson(source / "annotations" / "im0.geojson", ("Region*", (4, 4, 40, 28)), ("Tumor", (6, 6, 12, 12)))
    result, _ = ingest(source, tmp_path)
    reasons = {file.file: file.reason for file in result.rejected}
    assert reasons.keys() == {"annotations/im0.geojson", "images/im0.png"}
    assert "'Tumor' (1)" in reasons["annotations/im0.geojson"]
    assert 'classes: {gland: ["Gland", "gland, benign", "Tumor"]}' in reasons["annotations/im0.geojson"]


def test_notes_state_what_is_not_used(tmp_path: Path) -> None:
    source = make_lab(tmp_path / "in", stated="regions: image\n")
    write_geojson(source / "annotations" / "im0.geojson", ("Gland", (40, 20, 60, 30)))
    result, _ = ingest(source, tmp_path)
    assert result.notes == ("annotations/im0.geojson: clipped at the image's border: 1",)


def test_corrections_are_merged_into_the_labels(tmp_path: Path) -> None:
    source = make_lab(tmp_path / "in", stated="labelled: false\n")
    assert ingest(source, tmp_path)[0].labelled == 0
    file = source / "annotations" / "im0.geojson"
    write_geojson(file, ("Region*", (0, 0, 20, 32)), ("gland", (2, 2, 10, 10)))
    ingest(source, tmp_path)
    assert ingest(source, tmp_path)[0].relabelled == 0  # the same again changes nothing
    write_geojson(file, ("Region*", (10, 0, 48, 32)), ("gland", (30, 4, 36, 12)), ("gland", (36, 4, 40, 12)))
    result, dataset = ingest(source, tmp_path)
    assert (result.relabelled, result.unchanged) == (1, 3)
    expected = np.zeros((32, 48), np.uint8)
    expected[2:10, 2:10] = 1
    expected[4:12, 30:40] = 1
    mask, instances = labels(dataset, "im0")
    assert np.array_equal(mask, expected)
    assert instances is not None
    assert len(np.unique(instances[expected == 1])) == 3
    again = ingest(source, tmp_path)[0]
    assert (again.relabelled, again.unchanged) == (0, 4)


def test_one_coco_file_is_for_all_images(tmp_path: Path) -> None:
    source = make_lab(tmp_path / "in", stated="regions: image\n")
    square = [[6, 6, 12, 6, 12, 12, 6, 12]]
    content = {
        "images": [{"id": n, "file_name": f"im{n}.png", "width": 48, "height": 32} for n in (0, 1)],
        "categories": [{"id": 1, "name": "gland"}],
        "annotations": [{"id": n, "image_id": n, "category_id": 1, "segmentation": square} for n in (0, 1)],
    }
    (source / "annotations").mkdir()
    (source / "annotations" / "instances_default.json").write_text(json.dumps(content))
    result, dataset = ingest(source, tmp_path)
    assert (result.labelled, result.rejected) == (2, ())
    assert (labels(dataset, "im1")[0] == 1).sum() == 36


@pytest.mark.parametrize("kind", ["instances", "binary", "colors", "class_files"])
def test_masks_of_other_kinds(kind: str, tmp_path: Path) -> None:
    stated = {
        "instances": "masks: instances\n",
        "binary": "masks: binary\n",
        "colors": "palette: {background: [0, 0, 0], gland: '#ff0000'}\n",
        "class_files": "",
    }
    source = make_lab(tmp_path / "in", stated=stated[kind])
    (source / "masks").mkdir()
    objects = np.zeros((32, 48), np.uint16)
    objects[4:8, 4:8], objects[4:8, 8:12] = 7, 300
    array: npt.NDArray[Any] = objects if kind == "instances" else ((objects > 0) * 255).astype(np.uint8)
    if kind == "colors":
        array = np.stack([array, 0 * array, 0 * array], axis=2)
    for number in range(4):
        name = f"im{number}_Gland.png" if kind == "class_files" else f"im{number}.png"
        Image.fromarray(array).save(source / "masks" / name)
    result, dataset = ingest(source, tmp_path)
    assert (result.labelled, result.rejected) == (4, ())
    mask, instances = labels(dataset, "im0")
    assert np.array_equal(mask, objects > 0)
    assert (instances is not None) == (kind == "instances")
    if instances is not None:
        assert np.array_equal(instances, objects)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ("palette: {gland: '#ff00'}\n", "expected a color"),
        ("palette: {stroma: '#ff0000'}\n", "palette: expected background, gland, ignore, got stroma"),
        ("masks: colors\n", "expected a palette with masks: colors"),
        ("class_names: {stroma: [a]}\n", "class_names: expected background, gland, got stroma"),
        ("class_names: {background: [gland]}\n", "expected each name for one class, got 'gland'"),
    ],
)
def test_what_lab_yaml_states_wrongly_about_annotations(stated: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(LabError, match=message):
        read_lab_metadata(make_lab(tmp_path / "in", stated=stated))


def test_outlines_of_a_rotated_photograph_are_refused(tmp_path: Path) -> None:
    source = make_lab(tmp_path / "in")
    exif = Image.Exif()
    exif[274] = 6
    pixels = np.random.default_rng(9).integers(0, 256, (48, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(source / "images" / "turned.jpg", exif=exif)
    write_geojson(source / "annotations" / "turned.geojson", ("Region*", (0, 0, 20, 30)), ("gland", (2, 2, 10, 10)))
    result, _ = ingest(source, tmp_path)
    reasons = {file.file: file.reason for file in result.rejected}
    assert "stored upright" in reasons["annotations/turned.geojson"]
