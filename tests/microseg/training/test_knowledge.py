from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microseg.data.images import write_png
from microseg.data.sampling import Sample
from microseg.training import AdaptSettings
from microseg.training.knowledge import Knowledge, learn_from
from microseg.training.regions import RegionRules


def samples(folder: Path, *, by_colour: bool) -> list[Sample]:
    """Squares that are dark on a light ground, or have no colour of their own."""
    rng, made = np.random.default_rng(0), []
    for number in range(3):
        mask = np.zeros((48, 48), np.uint8)
        mask[8:24, 8:24] = mask[28:44, 20:40] = 1
        light = np.where(mask == 1, 90, 210)[..., None] if by_colour else 150
        image = np.clip(light + rng.normal(0, 10, (48, 48, 3)), 0, 255).astype(np.uint8)
        write_png(folder / f"{number}.png", image)
        write_png(folder / f"{number}m.png", mask)
        made.append(Sample(folder / f"{number}.png", folder / f"{number}m.png"))
    return made


def known(source: list[Sample], **values: Any) -> Knowledge:
    return learn_from(source, 2, AdaptSettings(**values))


def test_colours_vote_where_they_tell_the_classes(tmp_path: Path) -> None:
    source = samples(tmp_path, by_colour=True)
    assert known(source).votes
    assert known(source).colours is None
    assert not known(source, colour_votes=False).votes
    assert known(source, colour_votes=False).colours is None


def test_where_they_do_not_the_labs_own_colours_are_learned(tmp_path: Path) -> None:
    source = samples(tmp_path, by_colour=False)
    knowledge = known(source)
    assert not knowledge.votes
    assert knowledge.colours is not None
    assert knowledge.colours.mean.shape == (1, 3)
    assert knowledge.colours.mean.mean().item() == pytest.approx(-np.log(150 / 255), abs=0.02)
    assert known(source, colour_views=False).colours is None


def test_all_can_be_switched_off(tmp_path: Path) -> None:
    source = samples(tmp_path, by_colour=True)
    assert known(source).rules != RegionRules()
    assert known(source, region_rules=False, colour_votes=False, colour_views=False) == Knowledge()
