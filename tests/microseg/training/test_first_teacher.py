from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from microseg.data.images import write_png
from microseg.training import LabShift, NormStatistics, measure_statistics, mix_statistics, read_statistics
from microseg.training.first_teacher import choose_share, first_teacher
from microseg.training.regions import RegionRules


def test_the_teachers_statistics_are_in_part_the_labs(tiny_network: Callable[..., Any]) -> None:
    network = tiny_network()
    known = read_statistics(network)
    statistics = measure_statistics(network, [torch.rand(1, 3, 32, 32)])
    teacher = first_teacher(network, LabShift(1.0, statistics, statistics), 0.25)
    wanted = mix_statistics(known, statistics, 0.25)
    assert torch.equal(read_statistics(teacher).means[0], wanted.means[0])
    assert torch.equal(read_statistics(network).means[0], known.means[0])
    assert not teacher.training


@pytest.mark.parametrize(
    ("known", "own", "expected"),
    [
        (0.9, 0.4, 0.5),  # below a half the teacher takes everything for dark
        (0.5, 0.9, 0.25),  # and here at a half
        (0.6, 1.9, 0.0),  # and here with any of its own
        (0.4, 0.6, 0.5),  # all tell the halves apart: the largest
    ],
)
def test_the_share_whose_labels_the_stain_explains_is_taken(
    tmp_path: Path, known: float, own: float, expected: float
) -> None:
    """Pictures of a dark half (0.35) and a lighter one (0.65), and a teacher that calls dark what is below its mean."""
    picture = np.full((96, 96, 3), 166, np.uint8)
    picture[:, 48:] = 89
    write_png(tmp_path / "0.png", picture)
    shift = LabShift(1.0, NormStatistics((), ()), _statistics(own))
    assert choose_share(BelowMean(known), [tmp_path / "0.png"], shift, RegionRules()) == expected  # type: ignore[arg-type]


class BelowMean(torch.nn.Module):
    def __init__(self, mean: float) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(1)
        assert self.norm.running_mean is not None
        self.norm.running_mean.fill_(mean)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = 50 * self.norm(x[:, :1])
        return torch.cat([score, -score], dim=1)


def _statistics(mean: float) -> NormStatistics:
    return NormStatistics((torch.tensor([mean]),), (torch.ones(1),))
