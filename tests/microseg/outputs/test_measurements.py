import math

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from skimage.measure import regionprops_table

from microseg.outputs.measurements import OBJECT_COLUMNS
from microseg.outputs.objects import label_objects
from microseg.outputs.record import Provenance
from microseg.outputs.segmentation import Segmentation
from tests.microseg.outputs.finding import CLASSES, find


def two_rectangles() -> npt.NDArray[np.uint8]:
    mask = np.zeros((10, 20), np.uint8)
    mask[2:6, 3:9] = 1  # 4 rows, 6 columns
    mask[7:9, 12:14] = 2
    return mask


def segmentation(
    mask: npt.NDArray[np.uint8], probabilities: npt.NDArray[np.float32], mpp: float | None
) -> Segmentation:
    return Segmentation(mask, probabilities, CLASSES, mpp, Provenance(model="m"), "a.png")


def test_measures_rectangles_as_computed_by_hand() -> None:
    mask = two_rectangles()
    probabilities = np.zeros((3, *mask.shape), np.float32)
    probabilities[1, 2:6, 3:9] = 0.75
    probabilities[1, 2:6, 3:5] = 0.6
    probabilities[2, 7:9, 12:14] = 0.5
    table = segmentation(mask, probabilities, 0.5).objects
    assert tuple(table.columns) == OBJECT_COLUMNS
    gland, stroma = table.to_dict("records")
    assert gland == pytest.approx(
        {
            "image": "a.png",
            "label": 1,
            "class": "gland",
            "area_px": 24,
            "area_um2": 6.0,
            "perimeter_px": 16.0,  # through the centers of the border's pixels: 2 · (3 + 5)
            "perimeter_um": 8.0,
            "centroid_x_px": 6.0,
            "centroid_y_px": 4.0,
            "equivalent_diameter_px": math.sqrt(4 * 24 / math.pi),
            "equivalent_diameter_um": math.sqrt(4 * 24 / math.pi) / 2,
            "eccentricity": math.sqrt(1 - 15 / 35),  # variances of 0..3 and 0..5: 15/12 and 35/12
            "solidity": 1.0,
            "mean_probability": (0.6 * 8 + 0.75 * 16) / 24,
            "model": "m",
        }
    )
    assert (stroma["label"], stroma["class"], stroma["area_px"]) == (2, "stroma", 4)
    assert stroma["mean_probability"] == pytest.approx(0.5)


def test_notch_lowers_solidity() -> None:
    mask = np.ones((2, 2), np.uint8)
    mask[0, 1] = 0
    assert find(mask).table["solidity"].tolist() == [pytest.approx(3 / 3.5)]


def test_unknown_values_are_nan() -> None:
    table = find(two_rectangles()).table
    unknown = ["area_um2", "perimeter_um", "equivalent_diameter_um", "mean_probability"]
    assert table[unknown].isna().all().all()
    assert table.drop(columns=unknown).notna().all().all()


def test_table_without_objects_has_all_columns() -> None:
    table = find(np.zeros((4, 4), np.uint8), mpp=1.0).table
    assert len(table) == 0
    assert tuple(table.columns) == OBJECT_COLUMNS


@settings(deadline=None, max_examples=40)
@given(arrays.arrays(np.uint8, (20, 15), elements=st.sampled_from([0, 0, 1, 1, 2])))
def test_agrees_with_scikit_image(mask: npt.NDArray[np.uint8]) -> None:
    table = find(mask).table
    names = ("label", "area", "perimeter", "centroid", "equivalent_diameter_area", "eccentricity")
    found = regionprops_table(label_objects(mask), properties=names)  # type: ignore[no-untyped-call]
    other = pd.DataFrame(found)
    assert table["label"].tolist() == other["label"].tolist()
    for ours, theirs, offset in (
        ("area_px", "area", 0),
        ("perimeter_px", "perimeter", 0),
        ("centroid_y_px", "centroid-0", 0.5),
        ("centroid_x_px", "centroid-1", 0.5),
        ("equivalent_diameter_px", "equivalent_diameter_area", 0),
        ("eccentricity", "eccentricity", 0),
    ):
        np.testing.assert_allclose(table[ours], other[theirs] + offset, atol=1e-6, err_msg=ours)
    assert table["solidity"].between(0, 1 + 1e-9).all()


def test_summary_as_computed_by_hand() -> None:
    probabilities = np.zeros((3, 10, 20), np.float32)
    probabilities[0] = 1.0
    probabilities[:, :5] = 1 / 3  # half of the image: all classes equally probable
    summary = segmentation(two_rectangles(), probabilities, 0.5).summary
    assert summary == pytest.approx(
        {
            "area_mm2": 200 * 0.25 / 1e6,
            "objects_gland": 1,
            "area_fraction_gland": 24 / 200,
            "objects_stroma": 1,
            "area_fraction_stroma": 4 / 200,
            "mean_confidence": (1 + 1 / 3) / 2,
            "mean_entropy": 0.5,
        }
    )


def test_summary_of_many_rows() -> None:
    random = np.random.default_rng(0).dirichlet([1, 1, 1], (700, 5)).astype(np.float32)
    probabilities = np.moveaxis(random, 2, 0)
    summary = segmentation(probabilities.argmax(0).astype(np.uint8), probabilities, None).summary
    assert summary["mean_confidence"] == pytest.approx(probabilities.max(0).mean(), abs=1e-6)
    assert summary["mean_entropy"] == pytest.approx(-(random * np.log(random)).sum(2).mean() / math.log(3), abs=1e-5)
