"""Drift: what it costs beside segmenting an image, and whether it tells labs apart.

Cost: the drift of an image of a megapixel over the time that the engine takes for the same image, run by run.
Labs: for every two labs of a folder, one is known by half of its images (60 at most). Shown are the shares of images
      beyond the limit, of the other half (0.01 is meant) and of the other lab; mean (least to most) of random halves.
"""

import argparse
import json
import statistics
import time
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from microseg.datasets.appearance import APPEARANCE_FEATURES, image_features
from microseg.inference.engine import Engine
from microseg.inference.out_of_distribution import image_ood_score
from microseg.models.config import NetworkConfig
from microseg.models.network import PyramidSegmenter
from microseg.models.reference_distribution import MIN_REFERENCE_IMAGES, ReferenceDistribution, fit_lab_distribution
from microseg.slides.images import IMAGE_SUFFIXES, read_image
from microseg.synthetic.labs import LAB_A, make_section

__all__ = ["main"]

_SIDE, _HALVES, _MOST = 1000, 10, 150
_EPILOG = """\
The folder holds tasks, each a folder of labs with images/: see `python -m benchmarks.adaptation --help`.

Example: python -m benchmarks.drift --data data --json drift.json
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.drift",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="labs to tell apart; by default only cost is told")
    parser.add_argument("--encoder", default="tf_efficientnet_lite0", help="of the network (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="images timed (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    chosen = parser.parse_args(arguments)
    figures: dict[str, Any] = {"cost": _cost(chosen.encoder, chosen.runs)}
    if chosen.data:
        figures["labs"] = [row for task in sorted(chosen.data.iterdir()) if task.is_dir() for row in _task(task)]
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=2) + "\n")


def _cost(encoder: str, runs: int) -> dict[str, list[float]]:
    network = PyramidSegmenter(NetworkConfig(classes=("background", "gland"), encoder=encoder)).eval()
    engine, size = Engine(network), len(APPEARANCE_FEATURES)
    reference = ReferenceDistribution(
        APPEARANCE_FEATURES,
        {"lab_a": fit_lab_distribution(np.random.default_rng(0).normal(size=(20, size)), [""] * 20)},
    )
    section = make_section(LAB_A, 500, 1.0, seed=0)[0]
    image = np.tile(section, (2, 2, 1))[:_SIDE, :_SIDE]
    measured: dict[str, list[float]] = {"segment_s": [], "drift_s": [], "ratio": []}
    for run in range(-1, runs):  # the first is not counted
        began = time.perf_counter()
        engine.probabilities(image)
        between = time.perf_counter()
        image_ood_score(reference, image)
        ended = time.perf_counter()
        if run >= 0:
            for key, value in (("segment_s", between - began), ("drift_s", ended - between)):
                measured[key].append(value)
            measured["ratio"].append((ended - between) / (between - began))
    print(f"One image of {_SIDE} x {_SIDE}, {encoder}; median (least to most) of {runs}")
    for key, values in measured.items():
        print(f"{key:12}{statistics.median(values):10.4f}  ({min(values):.4f} to {max(values):.4f})")
    return measured


def _task(task: Path) -> list[dict[str, Any]]:
    described = {lab.name: _describe(lab / "images") for lab in sorted(task.iterdir()) if (lab / "images").is_dir()}
    rows = []
    for reference, other in permutations(described, 2):
        if len(described[reference]) < 2 * MIN_REFERENCE_IMAGES:
            continue
        row = {"task": task.name, "reference": reference, "other": other} | _apart(
            described[reference], described[other]
        )
        rows.append(row)
        told = "  ".join(f"{name} {_spread(row[name])}" for name in ("own", "new", "median_own", "median_new"))
        print(f"{task.name}: {reference} known by {row['learnt']}, beside {other}: {told}")
    return rows


def _describe(folder: Path) -> npt.NDArray[np.float64]:
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES]
    some = np.unique(np.linspace(0, len(files) - 1, min(_MOST, len(files))).astype(int))
    rows = [image_features(read_image(files[index])) for index in some]
    return np.array([row for row in rows if row is not None])


def _apart(reference: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> dict[str, Any]:
    learnt = min(len(reference) // 2, 60)
    found: dict[str, Any] = {"learnt": learnt, "own": [], "new": [], "median_own": [], "median_new": []}
    for half in range(_HALVES):
        order = np.random.default_rng(half).permutation(len(reference))
        lab = fit_lab_distribution(reference[order[:learnt]], [str(index) for index in range(learnt)])
        knows = ReferenceDistribution(APPEARANCE_FEATURES, {"reference": lab})
        own, new = knows.ood_score(reference[order[learnt:]]), knows.ood_score(other)
        for name, scores in (("own", own), ("new", new)):
            found[name].append(float((scores > 1).mean()))
            found[f"median_{name}"].append(float(np.median(scores)))
    return found


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
