"""The drift of a batch: of each image, of all of them, and of a batch that is done again."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from microseg.datasets.appearance import APPEARANCE_FEATURES, image_features
from microseg.inference.batch import segment_batch, segment_file
from microseg.inference.engine import Engine
from microseg.inference.out_of_distribution import image_ood_score
from microseg.models.reference_distribution import LabDistribution, ReferenceDistribution, summarize_scores
from microseg.outputs.record import Provenance
from microseg.outputs.segmentation import Segmentation
from microseg.slides.images import read_image, write_png


def test_drift_is_told_of_each_image_and_of_the_batch(
    brightness: type, images: list[Path], provenance: Provenance, tmp_path: Path
) -> None:
    """Known is what four of the five look like; the fifth is of another color, and a sixth is bare glass."""
    write_png(images[4], 255 - read_image(images[4]) // 2)
    write_png(images[0].parent / "glass.png", np.full((64, 64, 3), 250, np.uint8))
    images = [*images, images[0].parent / "glass.png"]
    figures = [image_features(read_image(path)) for path in images[:4]]
    center = np.mean([it for it in figures if it is not None], axis=0)
    reference = ReferenceDistribution(
        APPEARANCE_FEATURES, {"x": LabDistribution(4, center, 0.01 * np.eye(len(center)), 2.0)}
    )
    engine = Engine(brightness(), tile=128, halo=16)
    summary = segment_batch(engine, images, tmp_path / "out", provenance=provenance, reference=reference)
    told = pd.read_csv(summary.summary)["ood_score"]
    expected = [image_ood_score(reference, read_image(path)) for path in images]
    assert told[:5].tolist() == pytest.approx(expected[:5], rel=1e-4)
    assert (told[:4] < 1).all()
    assert told[4] > 1
    assert np.isnan(told[5])
    assert summary.ood_score == summarize_scores(expected[:5])  # type: ignore[arg-type]
    assert (summary.ood_score.images, summary.ood_score.ood_images) == (5, 1)
    assert not summary.ood_score.is_ood
    batch = json.loads(summary.record.read_text())["ood_score"]
    assert batch == {"images": 5, "ood_images": 1, "share": 0.2, "median": summary.ood_score.median, "is_ood": False}
    assert Segmentation.load(tmp_path / "out" / "4.json").ood_score == expected[4]
    assert segment_file(engine, images[4], provenance=provenance, reference=reference).ood_score == expected[4]
    again = segment_batch(engine, images, tmp_path / "out", provenance=provenance, reference=reference)
    assert (again.skipped, again.ood_score) == (6, summary.ood_score)
    without = segment_batch(engine, images, tmp_path / "other", provenance=provenance)
    assert "ood_score" not in pd.read_csv(without.summary).columns
    assert without.ood_score.images == 0
    assert json.loads(without.record.read_text())["ood_score"]["median"] is None
