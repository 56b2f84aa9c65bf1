import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from skimage.measure import regionprops_table

from microseg.outputs.batch_summary import _join_tables
from microseg.outputs.diameters import feret_diameters
from microseg.outputs.measurements import OBJECT_COLUMNS, ObjectTableWriter
from microseg.outputs.objects import label_objects
from microseg.outputs.record import Provenance
from microseg.outputs.segmentation import Segmentation
from tests.microseg.outputs.finding import CLASSES, find, image_info, two_rectangles


def test_measures_rectangles_as_computed_by_hand() -> None:
    mask = two_rectangles()
    probabilities = np.zeros((3, *mask.shape), np.float32)
    probabilities[1, 2:6, 3:9] = 0.75
    probabilities[1, 2:6, 3:5] = 0.6
    probabilities[2, 7:9, 12:14] = 0.5
    table = Segmentation(mask, probabilities, CLASSES, 0.5, Provenance(model="m"), "a.png").objects
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
            "circularity": 1.0,  # 4π · 24 / 16² is 1.18: the perimeter is through the centers of the pixels
            "max_diameter_px": math.hypot(4, 6),
            "max_diameter_um": math.hypot(4, 6) / 2,
            "min_diameter_px": 4.0,
            "min_diameter_um": 2.0,
            "centroid_x_um": 3.0,
            "centroid_y_um": 2.0,
            "at_border": 0,
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
    unknown = [*(name for name in OBJECT_COLUMNS if name.endswith(("_um", "_um2"))), "mean_probability"]
    assert table[unknown].isna().all().all()
    assert table.drop(columns=unknown).notna().all().all()


def test_table_without_objects_has_all_columns() -> None:
    table = find(np.zeros((4, 4), np.uint8), mpp=1.0).table
    assert len(table) == 0
    assert tuple(table.columns) == OBJECT_COLUMNS


@settings(max_examples=40)
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


def test_tables_with_other_columns_are_joined_by_name(tmp_path: Path) -> None:
    """Outputs that an earlier version wrote, and such with stains."""
    (tmp_path / "a.csv").write_text("image,label,class,area_px\na.png,1,gland,5\n")
    (tmp_path / "b.csv").write_text(
        ",".join([*OBJECT_COLUMNS, "dab_od_mean"])
        + "\nb.png,1,gland,7"
        + ",0.5" * (len(OBJECT_COLUMNS) - 5)
        + ",m/2,0.5\n"
    )
    columns = _join_tables([(tmp_path / "a.csv", "m/1"), (tmp_path / "b.csv", "m/2")], tmp_path / "c.csv")
    joined = pd.read_csv(tmp_path / "c.csv")
    assert tuple(joined.columns) == columns == (*OBJECT_COLUMNS, "dab_od_mean")
    assert joined["area_px"].tolist() == [5, 7]
    assert joined["model"].tolist() == ["m/1", "m/2"]
    assert joined["dab_od_mean"].tolist() == pytest.approx([np.nan, 0.5], nan_ok=True)


def test_diameters_of_a_triangle_are_its_longest_side_and_its_lowest_height() -> None:
    triangle = shapely.Polygon([(0, 0), (4, 0), (0, 3)])
    largest, smallest = feret_diameters(np.array([triangle, shapely.box(0, 0, 1, 2)]))
    np.testing.assert_allclose(largest, [5, math.hypot(1, 2)])
    np.testing.assert_allclose(smallest, [12 / 5, 1])


def test_diameters_of_a_disc_are_equal_and_its_circularity_is_one() -> None:
    y, x = np.mgrid[:80, :80]
    (row,) = find((np.hypot(y - 40, x - 40) < 30).astype(np.uint8), mpp=0.5).table.to_dict("records")
    assert row["max_diameter_um"] == pytest.approx(30, rel=0.03)
    assert row["min_diameter_px"] == pytest.approx(60, rel=0.03)
    assert row["circularity"] == pytest.approx(1, abs=0.1)
    assert row["area_um2"] == pytest.approx(math.pi * 30**2 / 4, rel=0.01)


def test_objects_at_the_border_are_flagged() -> None:
    mask = np.zeros((9, 9), np.uint8)
    mask[0, 3] = mask[3, 0] = mask[8, 5] = mask[5, 8] = mask[4, 4] = 1
    table = find(mask).table
    assert table["at_border"].tolist() == [1, 1, 0, 1, 1]


@pytest.mark.parametrize("name", ["=1+1", "+a", "-a", "@a"])
def test_names_in_tables_are_no_formulas(name: str, tmp_path: Path) -> None:
    mask = two_rectangles()
    found = find(mask, source=f"{name}.png", classes=("background", name, "stroma"))
    writer = ObjectTableWriter(tmp_path / "a.csv", image_info(mask), lambda _: np.zeros((1, 1, 3), np.uint8))
    writer.add_objects(found)
    assert not (set("=+-@\t") & {line[:1] for line in (tmp_path / "a.csv").read_text().splitlines()})
    assert pd.read_csv(tmp_path / "a.csv")["class"].tolist() == [f"'{name}", "stroma"]
