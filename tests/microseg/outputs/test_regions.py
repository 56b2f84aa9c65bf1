"""Regions of an image are measured one by one, the same in strips."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from microseg.errors import ImageReadError, SettingsError
from microseg.outputs.record import ImageInfo, Record
from microseg.outputs.regions import check_region_folder, region_facts
from microseg.outputs.segmentation_writer import SegmentationWriter
from microseg.outputs.writers import MaskStrip
from tests.microseg.outputs.finding import image_info


def write_regions(path: Path, **boxes: tuple[float, float, float, float]) -> None:
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]]},
            "properties": {"objectType": "annotation", "classification": {"name": name}},
        }
        for name, (x0, y0, x1, y1) in boxes.items()
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def measure(
    mask: npt.NDArray[np.uint8], info: ImageInfo, folder: Path, cuts: tuple[int, ...] = (), slide: bool = False
) -> tuple[pd.DataFrame, Record]:
    folder.mkdir()
    thumbnail = np.zeros((4, 4, 3), np.uint8)
    with SegmentationWriter(folder, info, ["labels"], lambda _: thumbnail, slide=slide) as writer:
        for start, stop in zip((0, *cuts), (*cuts, len(mask)), strict=True):
            writer.add(MaskStrip(start, mask[start:stop], None))
        record = writer.finish(None, seconds=None)
    return pd.read_csv(folder / record.outputs["regions"]), record


@pytest.mark.parametrize("step", [1.0, 2.0])
def test_regions_by_hand(tmp_path: Path, step: float) -> None:
    """Three glands of 16 pixels: one inside, one cut by the border with its center inside, one outside of ``left``."""
    mask = np.zeros((20, 40), np.uint8)
    for left in (4, 17, 30):
        mask[8:12, left : left + 4] = 1
    mask[0:2, 0:5] = 2
    folder = tmp_path / "regions"
    folder.mkdir()
    boxes = {"left": (0, 0, 20, 20), "=right": (25, 5, 60, 15)}  # which reaches beyond the image
    scaled = {name: tuple(step * side for side in box) for name, box in boxes.items()}
    write_regions(folder / "a.geojson", **scaled)  # type: ignore[arg-type]
    facts = region_facts(folder, Path("/images/a.png"))
    info = image_info(mask, mpp=50 / step, step=(step, step), **facts)
    table, record = measure(mask, info, tmp_path / "whole")
    assert record.regions_sha256 == facts["regions_sha256"]
    assert table["region_name"].tolist() == ["left", "'=right"]
    assert table["region"].tolist() == [1, 2]
    assert table["area_px"].tolist() == [400 * step**2, 150 * step**2]
    assert table["area_mm2"].tolist() == pytest.approx([1.0, 0.375])
    assert table["objects_gland"].tolist() == [2, 1]
    assert table["cut_objects_gland"].tolist() == [1, 0]
    assert table["objects_per_mm2_gland"].tolist() == pytest.approx([2, 1 / 0.375])
    assert table["area_fraction_gland"].tolist() == pytest.approx([28 / 400, 16 / 150])
    assert table["objects_stroma"].tolist() == [1, 0]
    assert table["model"].tolist() == ["m", "m"]
    strips, _ = measure(mask, info, tmp_path / "strips", (3, 9, 10), slide=True)
    pd.testing.assert_frame_equal(strips, table)


def test_images_without_a_file_have_no_regions(tmp_path: Path) -> None:
    mask = np.zeros((4, 4), np.uint8)
    write_regions(tmp_path / "other.geojson", a=(0, 0, 2, 2))
    assert region_facts(tmp_path, Path("a.png")) == {}
    assert region_facts(None, Path("a.png")) == {}
    folder = tmp_path / "out"
    folder.mkdir()
    with SegmentationWriter(folder, image_info(mask), ["labels"], lambda _: mask, slide=False) as writer:
        writer.add(MaskStrip(0, mask, None))
        assert list(writer.finish(None, seconds=None).outputs) == ["labels"]


def test_file_with_the_suffix_of_the_image_comes_first(tmp_path: Path) -> None:
    for name in ("a", "a.png"):
        write_regions(tmp_path / f"{name}.geojson", a=(0, 0, 2, 2))
    assert region_facts(tmp_path, Path("a.png"))["regions"].endswith("a.png.geojson")
    assert region_facts(tmp_path, Path("a.tif"))["regions"].endswith("/a.geojson")


@pytest.mark.parametrize("content", ["{}", "[]", "no JSON", '{"type": "FeatureCollection", "features": []}'])
def test_files_without_regions_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.geojson").write_text(content)
    mask = np.zeros((4, 4), np.uint8)
    info = image_info(mask, **region_facts(tmp_path, Path("a.png")))
    with pytest.raises(ImageReadError, match=r"a\.geojson: "):
        measure(mask, info, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []  # no temporary folder


def test_folder_without_regions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"inference\.regions"):
        check_region_folder(tmp_path)
