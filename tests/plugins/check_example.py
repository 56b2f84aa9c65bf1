"""Uses each part of the example package through microseg's public API. Run by `tests/test_plugins.py`."""

from pathlib import Path

import numpy as np

from microseg.slides.readers import open_slide


def test_slide_reader(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    np.save(tmp_path / "slide.npy", pixels)
    with open_slide(tmp_path / "slide.npy") as slide:
        assert np.array_equal(slide.read_region(0, 10, 5, 20, 30), pixels[5:35, 10:30])
