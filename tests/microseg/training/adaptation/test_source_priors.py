from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microseg.config.params import AdaptSettings
from microseg.datasets.sampling import Sample
from microseg.slides.images import write_png
from microseg.training.adaptation.region_rules import RegionRules
from microseg.training.adaptation.source_priors import SourcePriors, estimate_source_priors


def samples(folder: Path, *, by_color: bool) -> list[Sample]:
    """Squares that are dark on a light ground, or have no color of their own."""
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


def known(source: list[Sample], **values: Any) -> SourcePriors:
    return estimate_source_priors(source, 2, AdaptSettings(**values))


def test_colors_vote_where_they_tell_the_classes(tmp_path: Path) -> None:
    source = samples(tmp_path, by_color=True)
    assert known(source).color_voting
    assert known(source).colors is None
    assert not known(source, color_cluster_voting=False).color_voting
    assert known(source, color_cluster_voting=False).colors is None


def test_where_they_do_not_the_labs_own_colors_are_learned(tmp_path: Path) -> None:
    source = samples(tmp_path, by_color=False)
    knowledge = known(source)
    assert not knowledge.color_voting
    assert knowledge.colors is not None
    assert knowledge.colors.mean.shape == (1, 3)
    assert knowledge.colors.mean.mean().item() == pytest.approx(-np.log(150 / 255), abs=0.02)
    assert known(source, color_aligned_tta=False).colors is None


def test_all_can_be_switched_off(tmp_path: Path) -> None:
    source = samples(tmp_path, by_color=True)
    assert known(source).rules != RegionRules()
    assert known(source, region_rules=False, color_cluster_voting=False, color_aligned_tta=False) == SourcePriors()
