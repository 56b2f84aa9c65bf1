"""Out-of-distribution scores: their cost, and how well they separate labs.

Cost: the time of the score of an image of one megapixel over the time of its segmentation, run by run.
Labs: for every two labs of a folder, the reference distribution is fitted to half of the first lab's images (60 at
      most). Shown are the shares of images above the limit, of the other half (0.01 is expected) and of the other lab;
      mean (least to most) of random halves.
"""

import statistics
import time
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.results import ResultFile, argument_parser
from microseg.datasets.appearance import APPEARANCE_FEATURES, image_features
from microseg.inference.engine import Engine
from microseg.inference.out_of_distribution import image_ood_score
from microseg.models.config import NetworkConfig
from microseg.models.network import PyramidSegmenter
from microseg.models.reference_distribution import MIN_REFERENCE_IMAGES, ReferenceDistribution, fit_lab_distribution
from microseg.slides.images import IMAGE_SUFFIXES, read_image
from microseg.synthetic.labs import LAB_A, generate_image

__all__ = ["main"]

_SIZE, _HALVES, _MAX_IMAGES, _MAX_REFERENCE = 1000, 10, 150, 60
_EPILOG = """\
The folder holds tasks, each a folder of labs with images/: see `python -m benchmarks.adaptation --help`.

Example: python -m benchmarks.out_of_distribution --data data --json out_of_distribution.json
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argument_parser("benchmarks.out_of_distribution", __doc__, _EPILOG)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="labs to compare; by default only cost is measured")
    parser.add_argument("--encoder", default="tf_efficientnet_lite0", help="of the network (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="timed images (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all measurements to this file")
    args = parser.parse_args(arguments)
    file = ResultFile(args.json, "benchmarks.out_of_distribution", arguments)
    results: dict[str, Any] = {"cost": _cost(args.encoder, args.runs)}
    if args.data:
        results["labs"] = [row for task in sorted(args.data.iterdir()) if task.is_dir() for row in _task(task)]
    file.write(**results)


def _cost(encoder: str, runs: int) -> dict[str, list[float]]:
    network = PyramidSegmenter(NetworkConfig(classes=("background", "gland"), encoder=encoder)).eval()
    engine, size = Engine(network), len(APPEARANCE_FEATURES)
    reference = ReferenceDistribution(
        APPEARANCE_FEATURES,
        {"lab_a": fit_lab_distribution(np.random.default_rng(0).normal(size=(20, size)), [""] * 20)},
    )
    section = generate_image(LAB_A, 500, 1.0, seed=0)[0]
    image = np.tile(section, (2, 2, 1))[:_SIZE, :_SIZE]
    measured: dict[str, list[float]] = {"segment_s": [], "ood_score_s": [], "ratio": []}
    for run in range(-1, runs):  # the first run is a warm-up
        start = time.perf_counter()
        engine.probabilities(image)
        segmented = time.perf_counter()
        image_ood_score(reference, image)
        end = time.perf_counter()
        if run >= 0:
            measured["segment_s"].append(segmented - start)
            measured["ood_score_s"].append(end - segmented)
            measured["ratio"].append((end - segmented) / (segmented - start))
    print(f"One image of {_SIZE} x {_SIZE}, {encoder}; median (least to most) of {runs}")
    for key, values in measured.items():
        print(f"{key:12}{statistics.median(values):10.4f}  ({min(values):.4f} to {max(values):.4f})")
    return measured


def _task(task: Path) -> list[dict[str, Any]]:
    features = {lab.name: _features(lab / "images") for lab in sorted(task.iterdir()) if (lab / "images").is_dir()}
    rows = []
    for reference, other in permutations(features, 2):
        if len(features[reference]) < 2 * MIN_REFERENCE_IMAGES:
            continue
        scores = _scores(features[reference], features[other])
        rows.append({"task": task.name, "reference": reference, "other": other} | scores)
        text = "  ".join(f"{name} {_range(scores[name])}" for name in ("own", "new", "median_own", "median_new"))
        print(f"{task.name}: {reference} ({scores['images']} images), compared with {other}: {text}")
    return rows


def _features(folder: Path) -> npt.NDArray[np.float64]:
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES]
    some = np.unique(np.linspace(0, len(files) - 1, min(_MAX_IMAGES, len(files))).astype(int))
    rows = [image_features(read_image(files[index])) for index in some]
    return np.array([row for row in rows if row is not None])


def _scores(reference: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> dict[str, Any]:
    count = min(len(reference) // 2, _MAX_REFERENCE)
    result: dict[str, Any] = {"images": count, "own": [], "new": [], "median_own": [], "median_new": []}
    for half in range(_HALVES):
        order = np.random.default_rng(half).permutation(len(reference))
        lab = fit_lab_distribution(reference[order[:count]], [str(index) for index in range(count)])
        distribution = ReferenceDistribution(APPEARANCE_FEATURES, {"reference": lab})
        for name, features in (("own", reference[order[count:]]), ("new", other)):
            scores = distribution.ood_score(features)
            result[name].append(float((scores > 1).mean()))
            result[f"median_{name}"].append(float(np.median(scores)))
    return result


def _range(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
