"""Uses each part of the example package through microseg's public API. Run by `tests/test_plugins.py`."""

import json
from pathlib import Path

import numpy as np

from microseg.outputs.record import Provenance
from microseg.outputs.segmentation import Segmentation
from microseg.slides.readers import open_slide


def test_slide_reader(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    np.save(tmp_path / "slide.npy", pixels)
    with open_slide(tmp_path / "slide.npy") as slide:
        assert np.array_equal(slide.read_region(0, 10, 5, 20, 30), pixels[5:35, 10:30])


def test_output_writer(tmp_path: Path) -> None:
    mask = np.zeros((8, 9), np.uint8)
    mask[1:3, 1:3] = mask[5, 5] = 1
    found = Segmentation(mask, None, ("background", "gland"), None, Provenance(model="m"), "field 7")
    files = found.save(tmp_path, ["labels", "class_counts"])
    assert files["class_counts"].name == "field 7.counts.json"
    counts = json.loads(files["class_counts"].read_text())
    assert counts == {"pixels": {"background": 67, "gland": 5}, "objects": {"gland": 2}}
