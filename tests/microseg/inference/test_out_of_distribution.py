"""Out-of-distribution scores of a batch: of each image, of all images, and of a repeated batch."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from microseg.datasets.appearance import APPEARANCE_FEATURES, image_features
from microseg.inference.batch import segment_batch
from microseg.inference.engine import Engine
from microseg.inference.out_of_distribution import image_ood_score
from microseg.inference.single_image import segment_file
from microseg.models.reference_distribution import LabDistribution, ReferenceDistribution, summarize_scores
from microseg.outputs.record import Provenance
from microseg.outputs.segmentation import Segmentation
from microseg.slides.images import read_image, write_png


def test_scores_each_image_and_the_batch(
    brightness: type, images: list[Path], provenance: Provenance, tmp_path: Path
) -> None:
    """Four of five images are in distribution; the fifth has another color, and a sixth is bare glass."""
    write_png(images[4], 255 - read_image(images[4]) // 2)
    write_png(images[0].parent / "glass.png", np.full((64, 64, 3), 250, np.uint8))
    images = [*images, images[0].parent / "glass.png"]
    features = [image_features(read_image(path)) for path in images[:4]]
    center = np.mean([it for it in features if it is not None], axis=0)
    reference = ReferenceDistribution(
        APPEARANCE_FEATURES, {"x": LabDistribution(4, center, 0.01 * np.eye(len(center)), 2.0)}
    )
    engine = Engine(brightness(), tile=128, halo=16)
    summary = segment_batch(engine, images, tmp_path / "out", provenance=provenance, reference=reference)
    scores = pd.read_csv(summary.summary)["ood_score"]
    expected = [image_ood_score(reference, read_image(path)) for path in images]
    assert scores[:5].tolist() == pytest.approx(expected[:5], rel=1e-4)
    assert (scores[:4] < 1).all()
    assert scores[4] > 1
    assert np.isnan(scores[5])
    assert summary.ood == summarize_scores(expected[:5])  # type: ignore[arg-type]
    assert (summary.ood.images, summary.ood.out_of_distribution) == (5, 1)
    assert not summary.ood.exceeds_limits
    batch = json.loads(summary.record.read_text())["ood"]
    assert batch == {
        "images": 5,
        "out_of_distribution": 1,
        "share": 0.2,
        "median_score": summary.ood.median_score,
        "exceeds_limits": False,
    }
    assert Segmentation.load(tmp_path / "out" / "4.json").ood_score == expected[4]
    assert segment_file(engine, images[4], provenance=provenance, reference=reference).ood_score == expected[4]
    again = segment_batch(engine, images, tmp_path / "out", provenance=provenance, reference=reference)
    assert (again.skipped, again.ood) == (6, summary.ood)
    without = segment_batch(engine, images, tmp_path / "other", provenance=provenance)
    assert "ood_score" not in pd.read_csv(without.summary).columns
    assert without.ood.images == 0
    assert json.loads(without.record.read_text())["ood"]["median_score"] is None
