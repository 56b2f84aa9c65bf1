import json
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import shapely

from microseg.annotations.classes import LabelClasses
from microseg.annotations.files import AnnotatedImage
from microseg.annotations.formats import read_annotation
from microseg.errors import ImageReadError
from microseg.outputs.objects import label_objects
from microseg.outputs.outlines import DetectionsWriter, OutlinesWriter, features, qupath_name
from microseg.outputs.record import Provenance
from tests.microseg.outputs.finding import find, image_info


def collection(mask: npt.NDArray[np.uint8], path: Path, **changes: object) -> list[dict[str, Any]]:
    """Features of the file that is written for a mask."""
    writer = OutlinesWriter(path, image_info(mask, **changes), lambda _: mask)
    writer.add_objects(find(mask, **changes))  # type: ignore[arg-type]
    writer.finish()
    written = json.loads(path.read_text())
    assert written["type"] == "FeatureCollection"
    return written["features"]  # type: ignore[no-any-return]


def test_ring_as_written_by_hand(tmp_path: Path) -> None:
    mask = np.zeros((6, 8), np.uint8)
    mask[1:5, 2:7] = 2
    mask[2:4, 3:5] = 0
    (feature,) = collection(mask, tmp_path / "o.geojson")
    assert list(feature) == ["type", "id", "geometry", "properties"]
    assert feature["geometry"] == {
        "type": "Polygon",
        "coordinates": [
            [[2, 1], [7, 1], [7, 5], [2, 5], [2, 1]],  # closed, anticlockwise for y upwards
            [[3, 2], [3, 4], [5, 4], [5, 2], [3, 2]],
        ],
    }
    measurements = feature["properties"].pop("measurements")
    assert feature["properties"] == {
        "objectType": "annotation",
        "metadata": {"model": "m", "image": "a.png"},
        "name": "stroma 1",
        "classification": {"name": "stroma", "color": [228, 122, 0]},
    }
    assert measurements["Area px^2"] == 16
    assert (measurements["Centroid X px"], measurements["Centroid Y px"]) == (4.625, 3)


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("area_um2", "Area µm^2"),
        ("area_px", "Area px^2"),
        ("perimeter_um", "Length µm"),
        ("max_diameter_um", "Max diameter µm"),
        ("min_diameter_px", "Min diameter px"),
        ("centroid_x_um", "Centroid X µm"),
        ("circularity", "Circularity"),
        ("solidity", "Solidity"),
        ("hematoxylin_od_mean", "Hematoxylin OD mean"),
        ("ring_dab_od_std", "Ring: DAB OD std dev"),
        ("CD44_intensity_mean", "CD44 mean"),
        ("ring_nuclei_intensity_std", "Ring: nuclei std dev"),
    ],
)
def test_measurements_have_the_names_of_qupath(column: str, name: str) -> None:
    assert qupath_name(column) == name


def test_detections_are_the_same_objects_of_another_type(tmp_path: Path) -> None:
    mask = np.eye(3, dtype=np.uint8)
    writer = DetectionsWriter(tmp_path / "a.geojson", image_info(mask), lambda _: mask)
    writer.add_objects(find(mask))
    writer.finish()
    found = json.loads((tmp_path / "a.geojson").read_text())["features"]
    annotations = collection(mask, tmp_path / "b.geojson")
    assert {one["properties"].pop("objectType") for one in found} == {"detection"}
    assert {one["properties"].pop("objectType") for one in annotations} == {"annotation"}
    assert found == annotations


def test_ids_are_uuids_that_depend_on_source_model_and_settings_only() -> None:
    mask = np.eye(4, dtype=np.uint8)
    ids = [
        [
            json.loads(text)["id"]
            for text in features(
                find(mask),
                image_info(
                    mask, source_sha256=source, mpp=mpp, provenance=Provenance(model=model, inference={"tile": tile})
                ),
            )
        ]
        for source, model, tile, mpp in (
            ("a", "m/1", 64, None),
            ("a", "m/1", 64, None),
            ("b", "m/1", 64, None),
            ("a", "m/2", 64, None),
            ("a", "m/1", 96, None),
            ("a", "m/1", 64, 0.5),
        )
    ]
    assert ids[0] == ids[1]
    assert len({*ids[0], *ids[2], *ids[3], *ids[4], *ids[5]}) == 20
    assert all(str(uuid.UUID(i)) == i for i in ids[0])


def test_unknown_measurements_are_left_out_because_json_has_no_nan(tmp_path: Path) -> None:
    mask = np.ones((2, 2), np.uint8)
    for mpp, expected in ((None, False), (0.5, True)):
        (feature,) = collection(mask, tmp_path / "o.geojson", mpp=mpp)
        measurements = feature["properties"]["measurements"]
        assert ("Area µm^2" in measurements) is expected
        assert "Class probability" not in measurements
        json.dumps(feature, allow_nan=False)


def test_collection_without_objects(tmp_path: Path) -> None:
    assert collection(np.zeros((3, 3), np.uint8), tmp_path / "o.geojson") == []


def test_outlines_of_another_pixel_size_are_in_pixels_of_the_image(tmp_path: Path) -> None:
    mask = np.zeros((12, 10), np.uint8)
    mask[2:8, 3:7] = 2
    mask[10, 1] = 1
    first, second = collection(mask, tmp_path / "o.geojson", step=(2.0, 2.0), mpp=0.25)
    assert shapely.from_geojson(json.dumps(first["geometry"])).bounds == (6, 4, 14, 16)
    rows = [feature["properties"]["measurements"] for feature in (first, second)]
    assert [row["Area px^2"] for row in rows] == [96, 4]
    assert [row["Area µm^2"] for row in rows] == [6, 0.25]
    assert [row["Centroid X px"] for row in rows] == [10, 3]
    assert [feature["properties"]["name"] for feature in (first, second)] == ["stroma 1", "gland 2"]


@pytest.mark.parametrize("step", [(2.5, 1.25)])
def test_coordinates_are_rounded_to_hundredths(step: tuple[float, float], tmp_path: Path) -> None:
    mask = np.zeros((7, 9), np.uint8)
    mask[1:6, 1:8] = 1
    (feature,) = collection(mask, tmp_path / "o.geojson", step=step)
    assert feature["geometry"]["coordinates"][0][0] == [2.5, 1.25]
    assert shapely.from_geojson(json.dumps(feature["geometry"])).bounds == (2.5, 1.25, 20, 7.5)


def test_threads_find_objects_without_a_warning() -> None:
    program = """
import concurrent.futures, numpy
from tests.microseg.outputs.finding import find

mask = (numpy.random.default_rng(0).random((100, 100)) > 0.5).astype(numpy.uint8)
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    counts = set(pool.map(lambda _: len(find(mask).polygons), range(100)))
assert len(counts) == 1
"""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("step", [(1.0, 1.0), (2.0, 2.0)])
def test_written_outlines_come_back_the_same_in_class_and_number(step: tuple[float, float], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mask = np.kron(rng.integers(0, 3, (12, 15)), np.ones((3, 4))).astype(np.uint8)
    mask[rng.random(mask.shape) < 0.1] = 0
    path = tmp_path / "annotations" / "image.geojson"
    path.parent.mkdir()
    info = image_info(mask, step=step)
    writer = OutlinesWriter(path, info, lambda _: mask)
    writer.add_objects(find(mask, step=step))
    writer.finish()
    image = AnnotatedImage(Path(info.source).name, info.width, info.height)
    labels = read_annotation(path, image, LabelClasses(info.classes, regions=None))
    found = labels.read(scale=1 / step[0])
    assert labels.notes == ()
    assert np.array_equal(found.classes, mask)
    assert np.array_equal(found.instances, label_objects(mask))  # the same numbers, in the order of the first pixels
    with pytest.raises(ImageReadError, match=r"expected annotations of b\.png, got those of a\.png"):
        read_annotation(path, replace(image, name="b.png"), LabelClasses(info.classes, regions=None))
