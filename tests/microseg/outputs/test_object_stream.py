"""Objects found piece by piece are those of the whole mask."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from microseg.outputs.measurements import measure_objects
from microseg.outputs.object_stream import ObjectStream, StreamedObjects
from microseg.outputs.outlines import label_objects, outline_objects

CLASSES = ("background", "gland", "stroma")
Mask = npt.NDArray[np.uint8]
MASKS = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 30), st.integers(1, 16)), elements=st.sampled_from([0, 1, 1, 1, 2])
)


def found(mask: Mask, cuts: list[int], spool: Path) -> StreamedObjects:
    chance = np.full(mask.shape, 204, np.uint8)  # 0.8
    with ObjectStream(mask.shape[1], spool) as stream:
        for piece, share in zip(np.split(mask, cuts), np.split(chance, cuts), strict=True):
            if len(piece):
                stream.add(piece, share)
        return stream.finish()


def polygons(objects: StreamedObjects) -> npt.NDArray[np.object_]:
    parts = [part for _, part in objects.outlines()]
    return np.concatenate(parts) if parts else np.empty(0, np.object_)


def table(objects: StreamedObjects, folder: Path, **options: object) -> pd.DataFrame:
    given = {"image": "a.tif", "mpp": 0.5, "step": (1.0, 1.0), "source": "s", "outlines": None} | options
    objects.write(CLASSES, table=folder / "t.csv", **given)  # type: ignore[arg-type]
    return pd.read_csv(folder / "t.csv")


@settings(deadline=None, max_examples=70, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mask=MASKS, cuts=st.lists(st.integers(0, 30), max_size=8).map(sorted))
def test_pieces_do_not_matter(mask: Mask, cuts: list[int], tmp_path: Path) -> None:
    objects = found(mask, cuts, tmp_path / "spool")
    labels = label_objects(mask)
    whole = outline_objects(labels)
    expected = measure_objects(mask, CLASSES, probabilities=None, mpp=0.5, image="a.tif")
    outlines = polygons(objects)
    assert len(outlines) == len(whole)
    assert shapely.is_valid(outlines).all()
    assert shapely.equals(outlines, whole).all()
    assert [shapely.get_num_coordinates(p) for p in outlines] == [shapely.get_num_coordinates(p) for p in whole]
    assert shapely.is_ccw(shapely.get_exterior_ring(outlines)).all() if len(outlines) else True
    given = table(objects, tmp_path)
    assert (given["mean_probability"] == 0.8).all()
    columns = [c for c in expected.columns if c != "mean_probability" and not c.startswith("perimeter")]
    pd.testing.assert_frame_equal(given[columns], expected[columns], check_dtype=False, atol=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_perimeters_of_compact_objects_do_not_know_of_pieces(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:120, :90]
    mask = np.zeros((120, 90), np.uint8)
    for cy, cx, radius in zip(rng.uniform(0, 120, 9), rng.uniform(0, 90, 9), rng.uniform(3, 25, 9), strict=True):
        mask[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = rng.integers(1, 3)
    given = table(found(mask, [7, 30, 31, 33, 64, 119], tmp_path / "spool"), tmp_path)
    expected = measure_objects(mask, CLASSES, mpp=0.5)
    np.testing.assert_allclose(given["perimeter_px"], expected["perimeter_px"], atol=1e-3)


def test_a_comb_becomes_one_object_only_at_its_end(tmp_path: Path) -> None:
    mask = np.zeros((200, 41), np.uint8)
    mask[:, ::2] = 1
    mask[-1] = 1
    mask[0, 20:] = 1  # and half of it at its beginning
    objects = found(mask, list(range(10, 200, 10)), tmp_path / "spool")
    assert len(objects) == 1
    assert objects.sums[0, 0] == mask.sum()
    assert shapely.equals(polygons(objects)[0], outline_objects(label_objects(mask))[0])


def test_large_pieces_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from microseg.outputs import object_stream

    seen = list[int]()
    label = object_stream.label_objects
    monkeypatch.setattr(object_stream, "_PIXELS", 400)
    monkeypatch.setattr(object_stream, "label_objects", lambda mask: seen.append(len(mask)) or label(mask))
    mask = np.ones((100, 40), np.uint8)
    assert len(found(mask, [], tmp_path / "spool")) == 1
    assert max(seen) <= 10 + 2 * 2


def test_geojson_of_another_scale(tmp_path: Path) -> None:
    mask = np.zeros((12, 10), np.uint8)
    mask[2:8, 3:7] = 2
    mask[10, 1] = 1
    objects = found(mask, [5], tmp_path / "spool")
    rows = table(objects, tmp_path, step=(2.0, 2.0), mpp=0.25, outlines=tmp_path / "o.geojson")
    assert rows["area_px"].tolist() == [96, 4]
    assert rows["area_um2"].tolist() == [6, 0.25]
    assert rows["centroid_x_px"].tolist() == [10, 3]
    assert rows["class"].tolist() == ["stroma", "gland"]
    assert rows["label"].tolist() == [1, 2]
    features = json.loads((tmp_path / "o.geojson").read_text())["features"]
    shape = shapely.from_geojson(json.dumps(features[0]["geometry"]))
    assert shape.bounds == (6, 4, 14, 16)
    assert features[0]["properties"]["classification"] == {"name": "stroma", "color": [228, 122, 0]}
    assert features[0]["properties"]["measurements"]["area_px"] == 96
    assert len({feature["id"] for feature in features}) == 2


def test_nothing_found_is_an_empty_collection_and_table(tmp_path: Path) -> None:
    objects = found(np.zeros((9, 9), np.uint8), [4], tmp_path / "spool")
    assert len(table(objects, tmp_path, outlines=tmp_path / "o.geojson")) == 0
    assert json.loads((tmp_path / "o.geojson").read_text()) == {"type": "FeatureCollection", "features": []}
