from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from microseg.config.params import OutOfDistributionSettings
from microseg.datasets.dataset import LabDataset, open_lab_dataset
from microseg.datasets.ingest import ingest_lab
from microseg.evaluation.label_free import fit_reference_distribution
from microseg.evaluation.suitability import Suitability, measure_suitability
from microseg.inference.engine import Engine
from microseg.models.reference_distribution import OutOfDistributionSummary, ReferenceDistribution
from microseg.synthetic.labs import LAB_A, LAB_B, LabProfile, generate_lab


@dataclass
class Fixed:
    """An engine that marks what is darker than a fraction of the image's median."""

    threshold: float
    classes: tuple[str, ...] = ("background", "gland")
    mpp: float | None = 1.0

    def probabilities(self, image: npt.NDArray[np.uint8], mpp: float | None = None) -> npt.NDArray[np.float32]:
        foreground = (image.mean(2) < np.median(image) * self.threshold).astype(np.float32)  # (H, W)
        return np.stack([1 - foreground, foreground])


def lab_of(profile: LabProfile, folder: Path, *, seed: int, images: int = 12, labelled: bool = False) -> LabDataset:
    incoming = generate_lab(folder / "in", profile, images=images, size=96, labelled=labelled, seed=seed)
    return open_lab_dataset(ingest_lab(incoming, folder / "labs", folder / "quarantine", seed=1).folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> LabDataset:
    return lab_of(LAB_A, tmp_path_factory.mktemp("source"), seed=0, images=24, labelled=True)


@pytest.fixture(scope="module")
def reference(source: LabDataset) -> ReferenceDistribution:
    return fit_reference_distribution([source], 1.0)


def measured(lab: LabDataset, source: LabDataset, reference: ReferenceDistribution, **options: Any) -> Suitability:
    return measure_suitability(cast(Engine, Fixed(0.9)), lab, [source], reference, **{"max_loss": 0.05, **options})


def test_lab_of_the_same_profile_is_suited_and_another_is_not(
    source: LabDataset, reference: ReferenceDistribution, tmp_path: Path
) -> None:
    seen: list[str] = []
    same = measured(
        lab_of(replace(LAB_A, name="lab_c"), tmp_path / "c", seed=7), source, reference, on_image=seen.append
    )
    assert same.suited, str(same)
    assert same.out_of_distribution.images == 12
    assert len([name for name in seen if name.startswith("lab_c")]) == 12
    assert len(seen) == 12 + len(source.select(split="test"))  # held-out images only
    other = measured(lab_of(LAB_B, tmp_path / "b", seed=8), source, reference)
    assert not other.suited
    assert other.out_of_distribution.share > 0.5


def test_limits_of_the_distribution_are_settings(
    source: LabDataset, reference: ReferenceDistribution, tmp_path: Path
) -> None:
    lab = lab_of(LAB_B, tmp_path, seed=8)
    all_allowed = OutOfDistributionSettings(max_share=1, max_median_score=1e9)
    assert measured(lab, source, reference, policy=all_allowed, max_loss=1.0).suited


IN, OUT, NONE = (
    OutOfDistributionSummary(12, 0, 0.0, 0.5, False),
    OutOfDistributionSummary(12, 12, 1.0, 2.0, True),
    OutOfDistributionSummary(0, 0, nan, nan, False),  # no image shows tissue
)


@pytest.mark.parametrize(
    ("summary", "consistency", "own", "suited"),
    [
        (IN, 0.90, 0.90, True),
        (IN, 0.95, 0.90, True),
        (IN, 0.88, 0.90, True),  # a loss of just 0.02
        (IN, 0.87, 0.90, False),
        (IN, nan, 0.90, False),
        (IN, 0.90, nan, False),
        (OUT, 0.95, 0.90, False),
        (NONE, 0.95, 0.90, False),
    ],
)
def test_suited(summary: OutOfDistributionSummary, consistency: float, own: float, suited: bool) -> None:
    assert Suitability(summary, consistency, own, 0.02).suited is suited


def test_text() -> None:
    assert str(Suitability(IN, 0.9, 0.91, 0.02)) == (
        "0 of 12 images are out of distribution (median score 0.50, limit of an image: 1), and its augmentation "
        "consistency is 0.900 (0.910 on its source labs; a loss of up to 0.020 is allowed)"
    )
