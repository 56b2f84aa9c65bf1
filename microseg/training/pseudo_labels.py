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

from microseg.data.images import read_image, write_png
from microseg.data.sampling import Sample
from microseg.model import PyramidSegmenter
from microseg.training.colour_votes import colour_groups, voted_labels
from microseg.training.normalisation import mix_statistics, read_statistics, write_statistics
from microseg.training.regions import RegionRules, possible_labels
from microseg.training.shift import LabShift, predict_at, to_batch

__all__ = ["TargetLab", "first_teacher", "label_round", "round_samples"]

_ZOOMS = (0.8, 1.0, 1.25)  # about the scale that the teacher knows
_TURNS = (0, 1)  # quarter turns
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
    shift: LabShift


def first_teacher(network: PyramidSegmenter, shift: LabShift) -> PyramidSegmenter:
    """A copy of the segmenter in use, half its statistics of what it knows and half of the lab."""
    teacher = copy.deepcopy(network).eval()
    write_statistics(teacher, mix_statistics(read_statistics(network), shift.zoomed_statistics, 0.5))
    return teacher


def label_round(
    labs: Sequence[TargetLab],
    number: int,
    folder: Path,
    *,
    first: PyramidSegmenter,
    teacher: PyramidSegmenter,
    rules: RegionRules,
    colours: bool,
) -> None:
    """Write the masks of a round; a round that is there is left.

    Args:
        labs: whose windows are labelled.
        number: of the round, from 0.
        folder: of all rounds.
        first: the segmenter in use.
        teacher: the average of the network in training; not asked in round 0.
        rules: what regions are like; others are removed.
        colours: whether the pixels of a colour vote together; see `voted_labels`.
    """
    done = _round_folder(folder, number) / _DONE
    if done.exists():
        return
    for lab in labs:
        said = _first_word(first, lab, folder / "first" / lab.name)
        if number:
            later = (_predict(teacher, window, sorted({1.0, lab.shift.zoom**0.5})) for window in lab.windows)
            said = [torch.lerp(before, now, 0.5) for before, now in zip(said, later, strict=True)]
        if colours:
            labels = voted_labels(
                said, colour_groups([read_image(window) for window in lab.windows]), rules, lab.shift.zoom
            )
        else:
            labels = possible_labels(said, rules, lab.shift.zoom)
        target = _round_folder(folder, number) / lab.name
        target.mkdir(parents=True, exist_ok=True)
        for window, mask in zip(lab.windows, labels, strict=True):
            write_png(target / window.name, mask)
    done.touch()


def round_samples(labs: Sequence[TargetLab], number: int, folder: Path) -> list[Sample]:
    """The windows with the masks of a round."""
    return [
        Sample(window, _round_folder(folder, number) / lab.name / window.name) for lab in labs for window in lab.windows
    ]


def _first_word(network: PyramidSegmenter, lab: TargetLab, folder: Path) -> list[Tensor]:
    """The first teacher's probabilities, kept from round to round."""
    done = folder / _DONE
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        teacher = first_teacher(network, lab.shift)
        for window in lab.windows:
            predicted = _predict(teacher, window, [lab.shift.zoom * zoom for zoom in _ZOOMS])
            np.save(folder / f"{window.stem}.npy", predicted.half().numpy())
        done.touch()
    return [torch.from_numpy(np.load(folder / f"{window.stem}.npy")).float() for window in lab.windows]


def _predict(teacher: PyramidSegmenter, window: Path, zooms: Sequence[float]) -> Tensor:
    """(K, H, W), on the CPU: the mean over scales and turns."""
    batch = to_batch(read_image(window), next(teacher.parameters()).device)
    views = [
        torch.rot90(predict_at(teacher, torch.rot90(batch, turn, (2, 3)), zoom), -turn, (2, 3))
        for zoom in zooms
        for turn in _TURNS
    ]
    return torch.stack(views).mean(0)[0].cpu()


def _round_folder(folder: Path, number: int) -> Path:
    return folder / f"round-{number}"
