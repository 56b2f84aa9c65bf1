from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from microseg.annotations.index_masks import read_mask
from microseg.models.config import NetworkConfig
from microseg.models.heads import SemanticHead
from microseg.slides.images import read_image, write_png
from microseg.training.adaptation.domain_shift import DomainShift, TargetLab, mixed_network, predict_at, to_batch
from microseg.training.adaptation.normalization import NormStatistics, measure_statistics
from microseg.training.adaptation.pseudo_labels import pseudo_labelled_samples, write_pseudo_labels
from microseg.training.adaptation.region_rules import RegionRules
from microseg.training.adaptation.source_priors import SourcePriors
from microseg.training.color_augmentation import color_statistics


@pytest.fixture
def lab(tmp_path: Path, tiny_network: Callable[..., Any]) -> TargetLab:
    rng = np.random.default_rng(0)
    windows = tuple(tmp_path / "windows" / f"{number}.png" for number in range(2))
    windows[0].parent.mkdir()
    for window in windows:
        write_png(window, rng.integers(0, 256, (24, 40, 3), dtype=np.uint8))
    statistics = measure_statistics(tiny_network(), [torch.rand(1, 3, 32, 32)])
    return TargetLab("lab_b", windows, DomainShift(0.5, statistics, statistics))


def test_round_is_computed_once(lab: TargetLab, tiny_network: Callable[..., Any], tmp_path: Path) -> None:
    first, later = tiny_network(0), tiny_network(1).eval()
    write_pseudo_labels([lab], 0, tmp_path / "work", base=first, teacher=later, priors=SourcePriors())
    samples = pseudo_labelled_samples([lab], 0, tmp_path / "work")
    assert [sample.image for sample in samples] == list(lab.windows)
    masks = [read_mask(sample.mask) for sample in samples if sample.mask]
    assert all(mask.shape == (24, 40) for mask in masks)
    teacher, batch = (
        mixed_network(first, lab.shift.zoomed_statistics, 0.5),
        to_batch(read_image(lab.windows[0]), torch.device("cpu")),
    )
    seen = [predict_at(teacher, batch, 0.5 * zoom) for zoom in (0.8, 1.0, 1.25)]  # the lab's own zoom is 0.5
    turned = [predict_at(teacher, batch.rot90(1, (2, 3)), 0.5 * zoom).rot90(-1, (2, 3)) for zoom in (0.8, 1.0, 1.25)]
    expected = torch.stack([*seen, *turned]).mean(0)[0].argmax(0).numpy()
    assert np.mean(expected == masks[0]) > 0.99  # probabilities are kept in 16 bits
    write_pseudo_labels(
        [lab], 0, tmp_path / "work", base=later, teacher=later, priors=SourcePriors()
    )  # it is there: left as it is
    assert all(np.array_equal(read_mask(s.mask), m) for s, m in zip(samples, masks, strict=True) if s.mask)


def test_later_rounds_average_initial_and_current_predictions(tmp_path: Path) -> None:
    """Of two teachers with different predictions, the more confident one decides."""
    picture = np.full((16, 16, 3), 200, np.uint8)
    picture[:, 8:] = 90
    (tmp_path / "w").mkdir()
    write_png(tmp_path / "w" / "0.png", picture)
    statistics = NormStatistics((), ())
    lab = TargetLab("lab_b", (tmp_path / "w" / "0.png",), DomainShift(1.0, statistics, statistics))

    def masks(first: Any, later: Any, name: str, number: int = 1) -> Any:
        write_pseudo_labels([lab], number, tmp_path / name, base=first, teacher=later, priors=SourcePriors())
        (sample,) = pseudo_labelled_samples([lab], number, tmp_path / name)
        assert sample.mask is not None
        return read_mask(sample.mask)

    halves = (picture[..., 0] == 90).astype(np.uint8)
    sure, unsure = FixedSegmenter("follows"), FixedSegmenter("across", certainty=0.5)
    assert np.array_equal(masks(sure, unsure, "a"), halves)
    assert np.array_equal(masks(unsure, sure, "b"), halves)
    assert not np.array_equal(masks(unsure, sure, "c", number=0), halves)  # nobody asks the later one yet


def test_implausible_regions_are_removed_from_labels(tmp_path: Path) -> None:
    picture = np.full((32, 32, 3), 200, np.uint8)
    picture[4:20, 4:20] = 90
    picture[26:28, 26:28] = 90  # a speck
    write_png(tmp_path / "0.png", picture)
    statistics = NormStatistics((), ())
    lab = TargetLab("lab_b", (tmp_path / "0.png",), DomainShift(1.0, statistics, statistics))

    def marked(name: str, rules: RegionRules) -> int:
        teacher = FixedSegmenter("follows")
        write_pseudo_labels([lab], 0, tmp_path / name, base=teacher, teacher=teacher, priors=SourcePriors(rules))
        (sample,) = pseudo_labelled_samples([lab], 0, tmp_path / name)
        assert sample.mask is not None
        return int(read_mask(sample.mask)[22:, 22:].sum())

    assert marked("as they are", RegionRules()) > 0
    assert marked("by the rules", RegionRules((0.0, 40.0), (0.0, 0.0), ((), ()))) == 0


def test_color_clusters_vote(tmp_path: Path) -> None:
    """What a teacher says of one of five dark squares, that it is ground, does not count."""
    picture = np.full((60, 60, 3), 200, np.uint8)
    for top, left in ((4, 4), (4, 44), (44, 4), (44, 44), (24, 24)):
        picture[top : top + 12, left : left + 12] = 90
    write_png(tmp_path / "0.png", picture)
    statistics = NormStatistics((), ())
    lab = TargetLab("lab_b", (tmp_path / "0.png",), DomainShift(1.0, statistics, statistics))

    def marked(name: str, votes: bool) -> Any:
        teacher = FixedSegmenter("follows but in the middle")
        write_pseudo_labels(
            [lab], 0, tmp_path / name, base=teacher, teacher=teacher, priors=SourcePriors(color_voting=votes)
        )
        (sample,) = pseudo_labelled_samples([lab], 0, tmp_path / name)
        assert sample.mask is not None
        return read_mask(sample.mask)[24:36, 24:36]

    assert not marked("without voting", votes=False).any()
    assert (marked("together", votes=True) == 255).all()


def test_color_aligned_test_time_augmentation(tmp_path: Path) -> None:
    """A teacher that classifies by brightness predicts otherwise, and surely, where the source colors are darker."""
    picture = np.full((16, 16, 3), 140, np.uint8)
    picture[:, 8:] = 120  # dark for the teacher, barely
    masks = _colors_masks(picture, 0.2, tmp_path)
    assert not masks["as they are"][:, :6].any()
    assert masks["aligned"].all()


def test_colors_are_not_aligned_where_the_network_is_less_confident(tmp_path: Path) -> None:
    picture = np.full((16, 16, 3), 250, np.uint8)
    picture[:, 8:] = 40
    masks = _colors_masks(picture, 0.9, tmp_path)  # of bright source images: dark pixels become doubtful ones
    assert masks["as they are"][:, 10:].all()
    assert np.array_equal(masks["aligned"], masks["as they are"])


def _colors_masks(picture: Any, brightness: float, folder: Path) -> dict[str, Any]:
    """Pseudo-labels without source colors, and with those of source images of a brightness."""
    write_png(folder / "0.png", picture)
    statistics = NormStatistics((), ())
    lab = TargetLab("lab_b", (folder / "0.png",), DomainShift(1.0, statistics, statistics))
    colors = color_statistics(torch.full((1, 3, 4, 4), brightness))
    teacher, masks = FixedSegmenter("follows"), {}
    for name, priors in {"as they are": SourcePriors(), "aligned": SourcePriors(colors=colors)}.items():
        write_pseudo_labels([lab], 0, folder / name, base=teacher, teacher=teacher, priors=priors)
        (sample,) = pseudo_labelled_samples([lab], 0, folder / name)
        assert sample.mask is not None
        masks[name] = read_mask(sample.mask)
    return masks


class FixedSegmenter(torch.nn.Module):
    """A segmenter of two classes by brightness, by position, or by both."""

    def __init__(self, how: str, certainty: float = 20) -> None:
        super().__init__()
        self.how, self.certainty, self.stride = how, certainty, 1
        self.place = torch.nn.Parameter(torch.zeros(1))
        self.head = SemanticHead((1,), classes=2)
        self.config = NetworkConfig(classes=("ground", "dark"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        row = torch.arange(x.shape[2]).view(1, 1, -1, 1).expand(len(x), 1, -1, x.shape[3])
        score = (row % 8 < 4).float() - 0.5 if self.how == "across" else 0.5 - x[:, :1]
        if self.how == "follows but in the middle":
            down, along = ((torch.arange(length) / length - 0.5).abs() < 0.2 for length in x.shape[2:])
            score = torch.where(down[:, None] & along, -0.01, score)
        return self.certainty * torch.cat([-score, score], dim=1)
