"""The networks of the study: those of a grid of adaptations, and degraded ones made of them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.adaptation.methods import DEFAULT, SOURCE_ONLY, UPPER_BOUND
from benchmarks.evidence.degradation import (
    add_weight_noise,
    interpolate,
    random_network,
    shift_logit,
    with_statistics_of_images,
)
from benchmarks.evidence.statistics_mixing import mixed_statistics
from microseg.errors import SettingsError
from microseg.models.files import load_network
from microseg.models.network import PyramidSegmenter

__all__ = ["Candidate", "candidates", "grid_networks"]

_LOGITS = (("collapsed to", 20.0), ("biased to", 2.0))
_EXTRAPOLATION = (0.5, 1.5, 2.5)
_TRAINED = (0.6, 0.9)
_NOISE = (0.1, 0.3)

Images = Callable[[], Sequence[npt.NDArray[np.uint8]]]


@dataclass(frozen=True)
class Candidate:
    """A network to measure.

    Args:
        seed: Seed of the grid's networks.
        name: Name of the method, or of the degradation.
        degraded: Whether it is a degraded network; otherwise it is one of the grid.
        parents: SHA-256 of the weights that it is made of; together with the name they identify it.
        build: Creates it, in evaluation mode.
    """

    seed: int
    name: str
    degraded: bool
    parents: tuple[str, ...]
    build: Callable[[], PyramidSegmenter]


def grid_networks(grids: Sequence[Path], task: str) -> dict[int, dict[str, Path]]:
    """Find the networks of a task in grids: by seed, then by method.

    Equal networks of two grids are listed once; different ones of the same name are named after the grid, as
    ``default@second``. The upper bounds are left out: they were trained on masks of the report.

    Args:
        grids: Folders, each the ``--out`` of ``benchmarks.adaptation``.
        task: Name of the task.

    Raises:
        SettingsError: A seed has no ``source_only``, or there is no network of the task.
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
    incomplete = [seed for seed, networks in found.items() if SOURCE_ONLY not in networks]
    if incomplete or not found:
        places = ", ".join(str(grid / "work" / task) for grid in grids)
        what = f"seeds {incomplete} without it" if found else "no network"
        raise SettingsError(
            f"Expected seed-<n>/{SOURCE_ONLY} and adapted networks in {places}, found {what}: run python -m "
            f"benchmarks.adaptation --task {task} first, and give its --out as --grid."
        )
    return {seed: {SOURCE_ONLY: found[seed].pop(SOURCE_ONLY), **found[seed]} for seed in sorted(found)}


def candidates(
    seed: int, networks: Mapping[str, Path], others: Mapping[str, Images], target: Images | None = None
) -> list[Candidate]:
    """List a seed's networks, ``source_only`` first, those adapted by statistics mixing alone, and the degraded ones.

    Degraded ones are made of ``source_only`` and ``default``. Statistics mixing has many wrong assumptions among its
    variants; see `mixed_statistics`.

    Args:
        seed: Seed of the networks, and of the degradations.
        networks: Folders of the networks, by name.
        others: Images of other tasks' labs, by the task's name, for wrong batch-norm statistics.
        target: Images of the target lab, for statistics mixing; None for none.
    """
    result = [Candidate(seed, name, False, (_digest(folder),), _load(folder)) for name, folder in networks.items()]
    if target is not None:
        source = networks[SOURCE_ONLY]
        result += [
            Candidate(
                seed, f"statistics, {name}", False, (_digest(source),), _load(source, partial(mix, images=target))
            )
            for name, mix in mixed_statistics().items()
        ]
    origins = [name for name in (SOURCE_ONLY, DEFAULT) if name in networks]
    for name in origins:
        result += _degraded(seed, name, networks[name], others)
    source = networks[SOURCE_ONLY]
    for share in _TRAINED:
        random = _load(source, partial(_undertrained, seed=seed, share=share))
        result.append(Candidate(seed, f"{SOURCE_ONLY}, {share:.0%} trained", True, (_digest(source),), random))
    if DEFAULT in networks:
        parents = (_digest(source), _digest(networks[DEFAULT]))
        for share in _EXTRAPOLATION:
            line = _load(networks[DEFAULT], partial(_extrapolated, origin=source, share=share))
            result.append(Candidate(seed, f"{DEFAULT}, {share:g} of the way", True, parents, line))
    return result


def _degraded(seed: int, name: str, folder: Path, others: Mapping[str, Images]) -> list[Candidate]:
    classes = json.loads((folder / "network.json").read_text())["config"]["classes"]
    changes: dict[str, Callable[[PyramidSegmenter], PyramidSegmenter]] = {}
    for label in sorted({0, len(classes) - 1}):
        for verb, amount in _LOGITS:
            changes[f"{verb} {classes[label]}"] = partial(shift_logit, label=label, amount=amount)
    for amount in _NOISE:
        changes[f"noise {amount:g}"] = partial(add_weight_noise, amount=amount, seed=seed)
    for other, images in others.items():
        changes[f"statistics of {other}"] = partial(_with_wrong_statistics, images=images)
    return [
        Candidate(seed, f"{name}, {what}", True, (_digest(folder),), _load(folder, change))
        for what, change in changes.items()
    ]


def _undertrained(network: PyramidSegmenter, seed: int, share: float) -> PyramidSegmenter:
    return interpolate(random_network(network.config, seed), network, share)


def _extrapolated(network: PyramidSegmenter, origin: Path, share: float) -> PyramidSegmenter:
    return interpolate(load_network(origin), network, share)


def _with_wrong_statistics(network: PyramidSegmenter, images: Images) -> PyramidSegmenter:
    return with_statistics_of_images(network, images())


def _unchanged(network: PyramidSegmenter) -> PyramidSegmenter:
    return network


def _load(
    folder: Path, change: Callable[[PyramidSegmenter], PyramidSegmenter] = _unchanged
) -> Callable[[], PyramidSegmenter]:
    return lambda: change(load_network(folder)).eval()


def _digest(folder: Path) -> str:
    return str(json.loads((folder / "network.json").read_text())["weights_sha256"])
