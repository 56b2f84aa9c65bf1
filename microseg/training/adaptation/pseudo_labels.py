"""Pseudo-labels of a lab's windows: what a teacher takes each pixel for, as masks to train on.

The first teacher is the segmenter in use, helped by what was found about the lab; the later ones are the average of the
network in training. Each predicts at several scales and turns. A later teacher never speaks alone: the mean of its word
and the first one's decides, so that errors do not feed on themselves. Regions such as the labelled labs never have are
removed from all labels.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from microseg.datasets.sampling import Sample
from microseg.models.network import PyramidSegmenter
from microseg.slides.images import read_image, write_png
from microseg.training.adaptation.color_voting import color_clusters, voted_labels
from microseg.training.adaptation.domain_shift import DomainShift, predict_at, to_batch
from microseg.training.adaptation.normalization import mix_statistics, read_statistics, write_statistics
from microseg.training.adaptation.region_rules import plausible_labels
from microseg.training.adaptation.source_priors import SourcePriors
from microseg.training.color_augmentation import ColorStatistics, transfer_color

__all__ = ["TargetLab", "initial_teacher", "pseudo_labelled_samples", "write_pseudo_labels"]

_ZOOMS = (0.8, 1.0, 1.25)  # about the scale that the teacher knows
_TURNS = (0, 1)  # quarter turns
_BOLD = 0.75  # share of the lab's statistics, where the labels do not hang on it alone
_HALF_WAY = 0.5  # from an image's colors to the labelled labs'
_DONE = "done"


@dataclass(frozen=True)
class TargetLab:
    """A lab to adapt to.

    Attributes:
        name: of the lab.
        windows: files of its windows at the model's scale; see `cut_windows`.
        shift: what was found about it.
    """

    name: str
    windows: tuple[Path, ...]
    shift: DomainShift


def initial_teacher(network: PyramidSegmenter, shift: DomainShift, share: float = 0.5) -> PyramidSegmenter:
    """A copy of the segmenter in use, a share of its statistics of the lab and the others of what it knows."""
    teacher = copy.deepcopy(network).eval()
    write_statistics(teacher, mix_statistics(read_statistics(network), shift.zoomed_statistics, share))
    return teacher


def write_pseudo_labels(
    labs: Sequence[TargetLab],
    number: int,
    folder: Path,
    *,
    first: PyramidSegmenter,
    teacher: PyramidSegmenter,
    knowledge: SourcePriors,
) -> None:
    """Write the masks of a round; a round that is there is left.

    Args:
        labs: whose windows are labelled.
        number: of the round, from 0.
        folder: of all rounds.
        first: the segmenter in use.
        teacher: the average of the network in training; not asked in round 0.
        knowledge: what the labelled labs tell.
    """
    done = _round_folder(folder, number) / _DONE
    if done.exists():
        return
    for lab in labs:
        said = _initial_predictions(first, lab, folder / "first" / lab.name, knowledge.colors)
        if number:
            zooms = sorted({1.0, lab.shift.zoom**0.5})
            later = (_predict(teacher, _read(window), zooms, _TURNS).cpu() for window in lab.windows)
            said = [torch.lerp(before, now, 0.5) for before, now in zip(said, later, strict=True)]
        if knowledge.votes:
            groups = color_clusters([read_image(window) for window in lab.windows])
            labels = voted_labels(said, groups, knowledge.rules, lab.shift.zoom)
        else:
            labels = plausible_labels(said, knowledge.rules, lab.shift.zoom)
        target = _round_folder(folder, number) / lab.name
        target.mkdir(parents=True, exist_ok=True)
        for window, mask in zip(lab.windows, labels, strict=True):
            write_png(target / window.name, mask)
    done.touch()


def pseudo_labelled_samples(labs: Sequence[TargetLab], number: int, folder: Path) -> list[Sample]:
    """The windows with the masks of a round."""
    return [
        Sample(window, _round_folder(folder, number) / lab.name / window.name) for lab in labs for window in lab.windows
    ]


def _initial_predictions(
    network: PyramidSegmenter, lab: TargetLab, folder: Path, colors: ColorStatistics | None
) -> list[Tensor]:
    """The first teacher's probabilities, kept from round to round; where colors are given, half of what it says is of
    images half way to them.
    """
    done = folder / _DONE
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        zooms = [lab.shift.zoom * zoom for zoom in _ZOOMS]
        usual = initial_teacher(network, lab.shift)
        bold = usual if colors is None else initial_teacher(network, lab.shift, _BOLD)
        for window in lab.windows:
            image = _read(window)
            if colors is None:
                predicted = _predict(usual, image, zooms, _TURNS)
            else:
                near = transfer_color(image, colors, torch.tensor([_HALF_WAY]))
                views = _predict(bold, image, zooms, _TURNS[:1]), _predict(usual, near, zooms, _TURNS[1:])
                predicted = torch.lerp(*views, 0.5)
            np.save(folder / f"{window.stem}.npy", predicted.half().cpu().numpy())
        done.touch()
    return [torch.from_numpy(np.load(folder / f"{window.stem}.npy")).float() for window in lab.windows]


def _predict(teacher: PyramidSegmenter, image: Tensor, zooms: Sequence[float], turns: Sequence[int]) -> Tensor:
    """(1, 3, H, W) → (K, H, W): the mean over scales and turns."""
    batch = image.to(next(teacher.parameters()).device)
    views = [
        torch.rot90(predict_at(teacher, torch.rot90(batch, turn, (2, 3)), zoom), -turn, (2, 3))
        for zoom in zooms
        for turn in turns
    ]
    return torch.stack(views).mean(0)[0]


def _read(window: Path) -> Tensor:
    return to_batch(read_image(window), torch.device("cpu"))


def _round_folder(folder: Path, number: int) -> Path:
    return folder / f"round-{number}"
