"""The drift of a batch: of each image, of all of them, and of a batch that is done again."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from microseg.data import read_image, write_png
from microseg.data.appearance import APPEARANCE, describe_image
from microseg.inference import Engine, Provenance, Segmentation, image_drift, segment_batch, segment_file
from microseg.metrics import KnownImages, KnownLab, summarise_drift


def test_drift_is_told_of_each_image_and_of_the_batch(
    brightness: type, images: list[Path], provenance: Provenance, tmp_path: Path
) -> None:
    """Known is what four of the five look like; the fifth is of another colour, and a sixth is bare glass."""
    write_png(images[4], 255 - read_image(images[4]) // 2)
    write_png(images[0].parent / "glass.png", np.full((64, 64, 3), 250, np.uint8))
    images = [*images, images[0].parent / "glass.png"]
    figures = [describe_image(read_image(path)) for path in images[:4]]
    centre = np.mean([it for it in figures if it is not None], axis=0)
    known = KnownImages(APPEARANCE, {"x": KnownLab(4, centre, 0.01 * np.eye(len(centre)), 2.0)})
    engine = Engine(brightness(), tile=128, halo=16)
    summary = segment_batch(engine, images, tmp_path / "out", provenance=provenance, known=known)
    told = pd.read_csv(summary.summary)["drift"]
    expected = [image_drift(known, read_image(path)) for path in images]
    assert told[:5].tolist() == pytest.approx(expected[:5], rel=1e-4)
    assert (told[:4] < 1).all()
    assert told[4] > 1
    assert np.isnan(told[5])
    assert summary.drift == summarise_drift(expected[:5])  # type: ignore[arg-type]
    assert (summary.drift.images, summary.drift.unlike) == (5, 1)
    assert not summary.drift.drifted
    batch = json.loads(summary.record.read_text())["drift"]
    assert batch == {"images": 5, "unlike": 1, "share": 0.2, "median": summary.drift.median, "drifted": False}
    assert Segmentation.load(tmp_path / "out" / "4.json").drift == expected[4]
    assert segment_file(engine, images[4], provenance=provenance, known=known).drift == expected[4]
    again = segment_batch(engine, images, tmp_path / "out", provenance=provenance, known=known)
    assert (again.skipped, again.drift) == (6, summary.drift)
    without = segment_batch(engine, images, tmp_path / "other", provenance=provenance)
    assert "drift" not in pd.read_csv(without.summary).columns
    assert without.drift.images == 0
    assert json.loads(without.record.read_text())["drift"]["median"] is None
