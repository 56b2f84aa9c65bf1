"""StarDist on the same images: trained on the source lab for some CPU minutes, scored on both labs of a task.

    python -m benchmarks.objects.peers --data labs --task nuclei_fluo --seeds 0 --minutes 5 --json peers.json

StarDist is no dependency of microseg: ``pip install stardist tensorflow``; without it the command says so and writes
nothing. Its network, loss and augmentation are those of its example for 2D images; the training ends after the minutes,
and every tenth labelled image is left to it to choose its thresholds. It does not adapt to the target lab.
"""

import argparse
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich.console import Console

from benchmarks.adaptation.tasks import Task, find_task
from benchmarks.objects.metrics import METRICS
from benchmarks.results import Row, console_table, provenance
from microseg.annotations.instance_masks import INSTANCES, read_instances
from microseg.datasets.lab import read_lab_metadata
from microseg.evaluation.references import mean_scores, score
from microseg.files import atomic_write
from microseg.slides.region import read_source

__all__ = ["main"]

Labels = npt.NDArray[np.int32]

_HELD_OUT = 10  # every tenth labelled image
_PATCH = 192
_EPOCH = 10  # steps
_RAYS = 32


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark, print the table and write it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.objects.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the tasks")
    parser.add_argument("--task", nargs="+", required=True, help="folders in --data, of one class each")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="CPU minutes of each training")
    parser.add_argument("--json", type=Path, help="file of the rows, with command, date, commit and machine")
    chosen = parser.parse_args(arguments)
    console, rows = Console(), list[Row]()
    if missing := [name for name in ("stardist", "tensorflow") if importlib.util.find_spec(name) is None]:
        console.print(f"StarDist was skipped: {', '.join(missing)} is not installed.")
        return
    measured = provenance("benchmarks.objects.peers", arguments)
    for name in chosen.task:
        task = find_task(name, chosen.data, Path("var/benchmarks/objects/generated"))
        for seed in chosen.seeds:
            predict, steps = _train_stardist(task, seed, chosen.minutes * 60)
            rows += [row | {"steps": steps} for row in _score(task, predict, "StarDist source only", seed)]
            if chosen.json is not None:
                with atomic_write(chosen.json) as part:
                    part.write_text(json.dumps({"provenance": measured, "rows": rows}, indent=1) + "\n")
    console.print(console_table(pd.DataFrame(rows).round(3), "Objects of other programs"))


def _score(task: Task, predict: Callable[[npt.NDArray[np.uint8]], Labels], method: str, seed: int) -> Iterator[Row]:
    classes = read_lab_metadata(task.source).classes
    assert len(classes) == 2, "of one class"
    labels = np.zeros(0, np.int32)

    def segment(image: npt.NDArray[np.uint8], _mpp: float | None) -> npt.NDArray[np.float32]:
        nonlocal labels
        labels = predict(image)
        return np.stack([labels == 0, labels > 0]).astype(np.float32)

    for role in ("source", "target"):
        table = score(segment, task.references(role), classes, objects=True, label=lambda _outputs, _mpp: labels)
        means = mean_scores(table)
        values = {key: means[metric] for key, metric in METRICS.items()}
        yield {"task": task.name, "method": method, "seed": seed, **values, "target": role == "target"}


def _train_stardist(task: Task, seed: int, seconds: float) -> tuple[Callable[[npt.NDArray[np.uint8]], Labels], int]:
    import tensorflow  # type: ignore[import-not-found]
    from csbdeep.utils import normalize  # type: ignore[import-not-found]
    from stardist.models import Config2D, StarDist2D  # type: ignore[import-not-found]

    tensorflow.config.threading.set_intra_op_parallelism_threads(1)
    tensorflow.config.threading.set_inter_op_parallelism_threads(1)
    tensorflow.keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)

    def prepared(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return np.asarray(normalize(image, 1, 99.8, axis=(0, 1, 2)), np.float32)

    def augmented(image: npt.NDArray[np.float32], labels: Labels) -> tuple[npt.NDArray[np.float32], Labels]:
        turns, flip = rng.integers(4), rng.integers(2)
        image, labels = np.rot90(image, turns), np.rot90(labels, turns)
        if flip:
            image, labels = image[:, ::-1], labels[:, ::-1]
        image = image * rng.uniform(0.6, 2) + rng.uniform(-0.2, 0.2)
        return (image + 0.02 * rng.uniform(0, 1) * rng.normal(size=image.shape)).astype(np.float32), labels

    files = sorted((task.source / INSTANCES).iterdir())
    images = {path.stem: path for path in (task.source / "images").iterdir()}
    pairs = [(prepared(read_source(images[path.stem])), read_instances(path)) for path in files]
    held_out = pairs[::_HELD_OUT]
    learned = [pair for number, pair in enumerate(pairs) if number % _HELD_OUT]
    config = Config2D(
        n_rays=_RAYS, grid=(2, 2), n_channel_in=3, train_patch_size=(_PATCH, _PATCH), train_tensorboard=False
    )
    with tempfile.TemporaryDirectory() as folder:
        model = StarDist2D(config, name="peer", basedir=folder)
        model.prepare_for_training()
        stop: Any = _time_limit(tensorflow, seconds)
        model.callbacks.append(stop)
        arrays, truth = ([pair[part] for pair in learned] for part in (0, 1))
        checked = tuple([pair[part] for pair in held_out] for part in (0, 1))
        model.train(
            arrays, truth, validation_data=checked, augmenter=augmented, seed=seed, epochs=10**4, steps_per_epoch=_EPOCH
        )
        model.optimize_thresholds(*checked)
    return lambda image: np.asarray(model.predict_instances(prepared(image))[0], np.int32), stop.steps


def _time_limit(tensorflow: Any, seconds: float) -> Any:
    """A callback that ends the training after some CPU time, and counts its steps."""
    started = time.process_time()

    class TimeLimit(tensorflow.keras.callbacks.Callback):  # type: ignore[misc]
        steps = 0

        def on_train_batch_end(self, _batch: int, _logs: object = None) -> None:
            self.steps += 1
            if time.process_time() - started > seconds:
                self.model.stop_training = True

    return TimeLimit()


if __name__ == "__main__":
    main()
