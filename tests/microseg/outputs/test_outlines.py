import json
import subprocess
import sys
import uuid

import numpy as np
import numpy.typing as npt
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from rasterio.features import rasterize
from scipy import ndimage

from microseg.outputs.measurements import object_classes
from microseg.outputs.outlines import Annotations, feature_collection, label_objects, outline_objects

CLASSES = ("background", "gland", "stroma")
MASKS = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24)), elements=st.sampled_from([0, 0, 1, 1, 1, 2])
)


def collection(mask: npt.NDArray[np.uint8]) -> dict[str, list[dict[str, object]]]:
    labels = label_objects(mask)
    polygons = outline_objects(labels)
    features: dict[str, list[dict[str, object]]] = feature_collection(
        polygons, object_classes(mask, labels, len(polygons)).tolist(), CLASSES, source="a.png"
    )
    return json.loads(json.dumps(features))  # type: ignore[no-any-return]


@settings(deadline=None, max_examples=60)
@given(MASKS)
def test_outlines_drawn_back_are_the_mask(mask: npt.NDArray[np.uint8]) -> None:
    features = collection(mask)["features"]
    shapes = [(f["geometry"], CLASSES.index(f["properties"]["classification"]["name"])) for f in features]  # type: ignore[index]
    back = rasterize(shapes, out_shape=mask.shape, dtype=np.uint8) if shapes else np.zeros_like(mask)
    np.testing.assert_array_equal(back, mask)


@settings(deadline=None, max_examples=60)
@given(MASKS)
def test_outlines_are_valid_polygons_of_the_objects_area(mask: npt.NDArray[np.uint8]) -> None:
    labels = label_objects(mask)
    polygons = outline_objects(labels)
    assert shapely.is_valid(polygons).all()
    assert set(shapely.get_type_id(polygons)) <= {shapely.GeometryType.POLYGON.value}
    assert shapely.area(polygons).tolist() == np.bincount(labels.ravel(), minlength=1)[1:].tolist()


@settings(deadline=None, max_examples=60)
@given(MASKS)
def test_objects_are_the_four_connected_regions_of_each_class(mask: npt.NDArray[np.uint8]) -> None:
    labels = label_objects(mask)
    assert int(labels.max()) == sum(ndimage.label(mask == index)[1] for index in (1, 2))
    for number in range(1, int(labels.max()) + 1):
        assert len(np.unique(mask[labels == number])) == 1
        assert ndimage.label(labels == number)[1] == 1


def test_a_ring_by_hand() -> None:
    mask = np.zeros((6, 8), np.uint8)
    mask[1:5, 2:7] = 2
    mask[2:4, 3:5] = 0
    (feature,) = collection(mask)["features"]
    assert feature["geometry"] == {
        "type": "Polygon",
        "coordinates": [
            [[2, 1], [7, 1], [7, 5], [2, 5], [2, 1]],  # closed, anticlockwise for y upwards
            [[3, 2], [3, 4], [5, 4], [5, 2], [3, 2]],
        ],
    }
    assert feature["properties"] == {
        "objectType": "annotation",
        "name": "stroma 1",
        "classification": {"name": "stroma", "color": [228, 122, 0]},
        "measurements": {},
    }


def test_regions_that_touch_at_a_corner_are_two_objects() -> None:
    assert label_objects(np.eye(2, dtype=np.uint8)).tolist() == [[1, 0], [0, 2]]


def test_ignored_pixels_are_no_object() -> None:
    assert label_objects(np.array([[255, 1, 255]], np.uint8)).tolist() == [[0, 1, 0]]


def test_ids_are_uuids_that_stay_the_same_for_the_same_source_only() -> None:
    mask = np.eye(4, dtype=np.uint8)
    labels = label_objects(mask)
    polygons = outline_objects(labels)
    ids = [
        [f["id"] for f in feature_collection(polygons, [1] * 4, CLASSES, source=source)["features"]]
        for source in ("a", "a", "b")
    ]
    assert ids[0] == ids[1]
    assert len({*ids[0], *ids[2]}) == 8
    assert all(str(uuid.UUID(i)) == i for i in ids[0])


def test_measurements_that_are_unknown_are_left_out_for_json_has_no_nan() -> None:
    polygons = outline_objects(label_objects(np.ones((2, 2), np.uint8)))
    figures = [{"area_px": 4.0, "area_um2": float("nan")}]
    made = feature_collection(polygons, [1], CLASSES, measurements=figures)
    assert made["features"][0]["properties"]["measurements"] == {"area_px": 4.0}
    json.dumps(made, allow_nan=False)


def test_measurements_must_be_as_many_as_the_objects() -> None:
    polygons = outline_objects(label_objects(np.ones((2, 2), np.uint8)))
    with pytest.raises(ValueError, match="shorter"):
        feature_collection(polygons, [1], CLASSES, measurements=[])


def test_nothing_found() -> None:
    assert collection(np.zeros((3, 3), np.uint8))["features"] == []


@pytest.mark.parametrize("step", [(1.0, 1.0), (2.5, 1.25)])
def test_the_text_of_an_object_is_that_of_its_feature(step: tuple[float, float]) -> None:
    mask = np.ones((5, 7), np.uint8)
    mask[2, 3] = 0
    (polygon,) = outline_objects(label_objects(mask))
    annotations = Annotations(CLASSES, "a.png", step)
    figures = {"area_px": 34.0, "area_um2": float("nan")}
    feature = annotations.feature(polygon, 3, 1, figures)
    assert list(feature) == ["type", "id", "geometry", "properties"]
    assert json.loads(annotations.text(polygon, 3, 1, figures)) == feature


def test_several_threads_outline_without_a_warning() -> None:
    program = """
import concurrent.futures, numpy
from microseg.outputs.outlines import label_objects, outline_objects

labels = label_objects((numpy.random.default_rng(0).random((100, 100)) > 0.5).astype(numpy.uint8))
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    counts = set(pool.map(lambda _: len(outline_objects(labels)), range(100)))
assert counts == {labels.max()}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
