"""Objects of a mask in strips equal those of the whole mask."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from rasterio.features import rasterize
from scipy import ndimage

from microseg.outputs import object_file, pieces
from microseg.outputs.objects import ObjectFinder, label_objects
from tests.microseg.outputs.finding import find

Mask = npt.NDArray[np.uint8]
MASKS = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 30), st.integers(1, 16)), elements=st.sampled_from([0, 1, 1, 1, 2])
)
CUTS = st.lists(st.integers(0, 30), max_size=8).map(sorted)


@settings(max_examples=60)
@given(MASKS)
def test_objects_are_the_four_connected_regions_of_each_class(mask: Mask) -> None:
    labels = label_objects(mask)
    assert int(labels.max()) == sum(ndimage.label(mask == index)[1] for index in (1, 2))
    for number in range(1, int(labels.max()) + 1):
        assert len(np.unique(mask[labels == number])) == 1
        assert ndimage.label(labels == number)[1] == 1


def test_regions_that_touch_at_a_corner_are_two_objects() -> None:
    assert label_objects(np.eye(2, dtype=np.uint8)).tolist() == [[1, 0], [0, 2]]


def test_ignored_pixels_are_not_objects() -> None:
    assert label_objects(np.array([[255, 1, 255]], np.uint8)).tolist() == [[0, 1, 0]]


def test_ignored_pixels_beside_the_background_change_no_object() -> None:
    mask = np.array([[0, 255, 1], [255, 0, 1], [2, 255, 0]], np.uint8)
    found = find(mask)
    assert found.indices.tolist() == [1, 2]
    assert shapely.area(found.polygons).tolist() == [2, 1]
    assert found.table["area_px"].tolist() == [2, 1]


@settings(max_examples=60)
@given(MASKS)
def test_outlines_are_valid_polygons_that_rasterize_to_the_mask(mask: Mask) -> None:
    found, labels = find(mask), label_objects(mask)
    assert shapely.is_valid(found.polygons).all()
    assert set(shapely.get_type_id(found.polygons)) <= {shapely.GeometryType.POLYGON.value}
    assert shapely.area(found.polygons).tolist() == np.bincount(labels.ravel(), minlength=1)[1:].tolist()
    shapes = list(zip(found.polygons, found.indices.tolist(), strict=True))
    back = rasterize(shapes, out_shape=mask.shape, dtype=np.uint8) if shapes else np.zeros_like(mask)
    np.testing.assert_array_equal(back, mask)


@settings(max_examples=70)
@given(mask=MASKS, cuts=CUTS)
def test_strips_do_not_change_objects(mask: Mask, cuts: list[int], tmp_path: Path) -> None:
    cuts = [min(cut, len(mask)) for cut in cuts]
    whole = find(mask, mpp=0.5)
    found = find(mask, cuts, np.full(mask.shape, 204, np.uint8), tmp_path, mpp=0.5)
    assert len(found.polygons) == len(whole.polygons) == int(label_objects(mask).max())
    assert shapely.is_valid(found.polygons).all()
    assert shapely.equals(found.polygons, whole.polygons).all()
    assert shapely.get_num_coordinates(found.polygons).tolist() == shapely.get_num_coordinates(whole.polygons).tolist()
    assert shapely.is_ccw(shapely.get_exterior_ring(found.polygons)).all() if len(found.polygons) else True
    np.testing.assert_allclose(found.table["mean_probability"].astype(float), 0.8)
    columns = [c for c in whole.table.columns if c != "mean_probability" and not c.startswith("perimeter")]
    pd.testing.assert_frame_equal(found.table[columns], whole.table[columns], check_dtype=False, atol=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_strips_do_not_change_perimeters_of_compact_objects(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:120, :90]
    mask = np.zeros((120, 90), np.uint8)
    for cy, cx, radius in zip(rng.uniform(0, 120, 9), rng.uniform(0, 90, 9), rng.uniform(3, 25, 9), strict=True):
        mask[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = rng.integers(1, 3)
    cut, whole = find(mask, [7, 30, 31, 33, 64, 119]).table, find(mask).table
    np.testing.assert_allclose(cut["perimeter_px"], whole["perimeter_px"], atol=1e-3)


def test_joins_a_comb_at_its_end() -> None:
    mask = np.zeros((200, 41), np.uint8)
    mask[:, ::2] = 1
    mask[-1] = 1
    mask[0, 20:] = 1  # and half of it at its beginning
    found = find(mask, list(range(10, 200, 10)))
    assert found.table["area_px"].tolist() == [mask.sum()]
    assert shapely.equals(found.polygons, find(mask).polygons).all()


def test_cuts_strips_of_slides_into_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[int]()
    label = pieces.label_runs
    monkeypatch.setattr(pieces, "label_runs", lambda runs: seen.append(runs.shape[0]) or label(runs))
    mask = np.ones((100, 40), np.uint8)
    assert len(find(mask, piece=400).polygons) == 1
    assert max(seen) <= 10 + 2 * 2
    seen.clear()
    assert len(find(mask).polygons) == 1
    assert seen == [100]


def test_reads_many_objects_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_file, "_BATCH", 3)
    monkeypatch.setattr(object_file, "_IN_MEMORY", 200)  # so that outlines go to the temporary file
    mask = np.zeros((20, 9), np.uint8)
    mask[::2, ::2] = 1
    found = find(mask)
    assert found.table["label"].tolist() == list(range(1, 51))
    assert shapely.area(found.polygons).tolist() == [1] * 50


def test_long_objects_that_join_at_last_are_few_outlines_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The teeth of a comb in two hundred pieces: parts of each are joined on the way, and the teeth at its end."""
    mask = np.zeros((400, 200), np.uint8)
    mask[:, ::2] = 1
    mask[-1] = 1
    most = [0]
    join = ObjectFinder._join

    def watched(finder: ObjectFinder, *arguments: Any) -> None:
        join(finder, *arguments)
        if len(finder._open) == 100:  # not joined yet
            most.extend(len(one.parts) for one in finder._open.values())

    monkeypatch.setattr(ObjectFinder, "_join", watched)
    batch = find(mask, piece=400)
    assert batch.columns["area_px"].tolist() == [int(mask.sum())]
    assert shapely.area(batch.polygons).tolist() == [mask.sum()]
    assert 1 < max(most) < 30
