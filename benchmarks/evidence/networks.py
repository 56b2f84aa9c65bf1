"""The networks of the study: those that a grid of adaptations kept, and bad ones made from them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.adaptation.methods import DEFAULT, SOURCE_ONLY, UPPER_BOUND
from benchmarks.evidence.spoiling import between, noisy, tilted, untrained, with_statistics_of
from microseg.errors import SettingsError
from microseg.models.files import load_network
from microseg.models.network import PyramidSegmenter

__all__ = ["Subject", "kept_networks", "subjects"]

_LOGITS = (("collapsed to", 20.0), ("tilted to", 2.0))
_BEYOND = (0.5, 1.5, 2.5)
_TRAINED = (0.6, 0.9)
_NOISE = (0.1, 0.3)

Images = Callable[[], Sequence[npt.NDArray[np.uint8]]]


@dataclass(frozen=True)
class Subject:
    """A network to measure.

    Attributes:
        seed: of the grid's networks that it is or comes from.
        name: of the method, or of what was done to a network.
        made: whether it was made here; else it is one that the grid kept.
        parents: SHA-256 of the weights that it is made of; with the name they say what it is.
        build: makes it, in evaluation mode.
    """

    seed: int
    name: str
    made: bool
    parents: tuple[str, ...]
    build: Callable[[], PyramidSegmenter]


def kept_networks(grids: Sequence[Path], task: str) -> dict[int, dict[str, Path]]:
    """The networks of a task that grids kept: by seed, then by method.

    A network that two grids have alike comes once; another of the same name is told by its grid, ``default@second``.
    The upper bounds are left out: they were trained on masks that the report is made on.

    Args:
        grids: folders, each the ``--out`` of ``benchmarks.adaptation``.
        task: the task's name.

    Raises:
        SettingsError: when a seed has no ``source_only``, or there is no network of the task at all.
    """
    found: dict[int, dict[str, Path]] = {}
    seen: set[tuple[int, str]] = set()
    for grid in grids:
        for file in sorted((grid / "work" / task).glob("seed-*/*/minutes.json")):  # written last
            folder, seed = file.parent, int(file.parent.parent.name.removeprefix("seed-"))
            if folder.name.startswith(UPPER_BOUND) or (seed, _digest(folder)) in seen:
                continue
            seen.add((seed, _digest(folder)))
            networks = found.setdefault(seed, {})
            networks[folder.name if folder.name not in networks else f"{folder.name}@{grid.name}"] = folder
    lacking = [seed for seed, networks in found.items() if SOURCE_ONLY not in networks]
    if lacking or not found:
        places = ", ".join(str(grid / "work" / task) for grid in grids)
        what = f"seeds {lacking} without it" if found else "no network"
        raise SettingsError(
            f"Expected seed-<n>/{SOURCE_ONLY} and adapted networks in {places}, found {what}: run python -m "
            f"benchmarks.adaptation --task {task} first, and give its --out as --grid."
        )
    return {seed: {SOURCE_ONLY: found[seed].pop(SOURCE_ONLY), **found[seed]} for seed in sorted(found)}


def subjects(seed: int, kept: Mapping[str, Path], others: Mapping[str, Images]) -> list[Subject]:
    """A seed's networks, ``source_only`` first, and the bad ones made from ``source_only`` and ``default``.

    Args:
        seed: of the kept ones, and of what is random in those made.
        kept: by name.
        others: images of other tasks' labs, by the task's name, whose statistics are wrong here.
    """
    result = [Subject(seed, name, False, (_digest(folder),), _load(folder)) for name, folder in kept.items()]
    origins = [name for name in (SOURCE_ONLY, DEFAULT) if name in kept]
    for name in origins:
        result += _spoilt(seed, name, kept[name], others)
    source = kept[SOURCE_ONLY]
    for share in _TRAINED:
        random = _load(source, partial(_undertrained, seed=seed, share=share))
        result.append(Subject(seed, f"{SOURCE_ONLY}, {share:.0%} trained", True, (_digest(source),), random))
    if DEFAULT in kept:
        parents = (_digest(source), _digest(kept[DEFAULT]))
        for share in _BEYOND:
            line = _load(kept[DEFAULT], partial(_on_the_way, origin=source, share=share))
            result.append(Subject(seed, f"{DEFAULT}, {share:g} of the way", True, parents, line))
    return result


def _spoilt(seed: int, name: str, folder: Path, others: Mapping[str, Images]) -> list[Subject]:
    classes = json.loads((folder / "network.json").read_text())["config"]["classes"]
    made: dict[str, Callable[[PyramidSegmenter], PyramidSegmenter]] = {}
    for label in sorted({0, len(classes) - 1}):
        for verb, amount in _LOGITS:
            made[f"{verb} {classes[label]}"] = partial(tilted, label=label, amount=amount)
    for amount in _NOISE:
        made[f"noise {amount:g}"] = partial(noisy, amount=amount, seed=seed)
    for other, images in others.items():
        made[f"statistics of {other}"] = partial(_with_wrong_statistics, images=images)
    return [
        Subject(seed, f"{name}, {what}", True, (_digest(folder),), _load(folder, change))
        for what, change in made.items()
    ]


def _undertrained(network: PyramidSegmenter, seed: int, share: float) -> PyramidSegmenter:
    return between(untrained(network.config, seed), network, share)


def _on_the_way(network: PyramidSegmenter, origin: Path, share: float) -> PyramidSegmenter:
    return between(load_network(origin), network, share)


def _with_wrong_statistics(network: PyramidSegmenter, images: Images) -> PyramidSegmenter:
    return with_statistics_of(network, images())


def _unchanged(network: PyramidSegmenter) -> PyramidSegmenter:
    return network


def _load(
    folder: Path, change: Callable[[PyramidSegmenter], PyramidSegmenter] = _unchanged
) -> Callable[[], PyramidSegmenter]:
    return lambda: change(load_network(folder)).eval()


def _digest(folder: Path) -> str:
    return str(json.loads((folder / "network.json").read_text())["weights_sha256"])
