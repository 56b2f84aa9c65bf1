from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microseg.config.training_params import AdaptSettings
from microseg.datasets.sampling import Sample
from microseg.slides.images import write_png
from microseg.slides.modality import Modality
from microseg.training.adaptation.region_rules import RegionRules
from microseg.training.adaptation.source_priors import SourcePriors, estimate_source_priors


def samples(folder: Path, *, by_color: bool) -> list[Sample]:
    """Squares that are dark on a light background, or have its color."""
    rng, made = np.random.default_rng(0), []
    for number in range(3):
        mask = np.zeros((48, 48), np.uint8)
        mask[8:24, 8:24] = mask[28:44, 20:40] = 1
        light = np.where(mask == 1, 90, 210)[..., None] if by_color else 150
        image = np.clip(light + rng.normal(0, 10, (48, 48, 3)), 0, 255).astype(np.uint8)
        write_png(folder / f"{number}.png", image)
        write_png(folder / f"{number}m.png", mask)
        made.append(Sample(folder / f"{number}.png", folder / f"{number}m.png"))
    return made


def priors(source: list[Sample], **values: Any) -> SourcePriors:
    return estimate_source_priors(source, 2, AdaptSettings(**values))


def test_color_voting_where_color_predicts_the_classes(tmp_path: Path) -> None:
    source = samples(tmp_path, by_color=True)
    assert priors(source).color_voting
    assert priors(source).colors is None
    assert not priors(source, color_cluster_voting=False).color_voting
    assert priors(source, color_cluster_voting=False).colors is None


def test_mean_colors_where_color_does_not_predict_the_classes(tmp_path: Path) -> None:
    source = samples(tmp_path, by_color=False)
    found = priors(source)
    assert not found.color_voting
    assert found.colors is not None
    assert found.colors.mean.shape == (1, 3)
    assert found.colors.mean.mean().item() == pytest.approx(-np.log(150 / 255), abs=0.02)
    assert priors(source, color_aligned_tta=False).colors is None


def test_colors_hold_for_labs_of_the_same_modality_only(tmp_path: Path) -> None:
    found = priors(samples(tmp_path, by_color=True))
    assert found.modality is Modality.GRAY
    assert found.for_modality(Modality.GRAY) == found
    other = found.for_modality(Modality.STAINED)
    assert other.rules == found.rules
    assert not other.color_voting


def test_all_priors_can_be_disabled(tmp_path: Path) -> None:
    source = samples(tmp_path, by_color=True)
    assert priors(source).rules != RegionRules()
    assert priors(source, region_rules=False, color_cluster_voting=False, color_aligned_tta=False) == SourcePriors()
