"""Benchmark of objects: how well touching objects are separated, counted and outlined, in both labs of a task.

    python -m benchmarks.objects --data labs --task nuclei_gbm nuclei_fluo --seeds 0 1 2 --json objects.json

A task is a folder with one labelled lab and one unlabelled lab, each with numbered objects in ``test/instances``, the
labelled one in ``instances``, too. For each task and seed a network with an instance head is trained on the source lab
and adapted to the target lab. Each of its segmentations is scored several times: ``instances``, the objects that the
head separates, ``components``, the connected regions of the same mask, ``split``, these divided by their shape, as
``inference.split_touching`` does, ``watershed``, divided by a watershed of the distance transform of the whole image,
and ``as annotated``, the pixels of the mask at the annotated objects, which is what a perfect separation makes of it.
``semantic`` is the network without the head, which the Dice and the time are compared with. Finished networks are kept
in ``--out``. With ``--json docs/benchmarks/results/objects.json`` the results become part of the
documentation: see benchmarks.report.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich.console import Console

from benchmarks.adaptation.tasks import Task, find_task, fold_labs, open_labs
from benchmarks.objects.annotated_split import split_as_annotated
from benchmarks.objects.distance_split import split_by_distance
from benchmarks.objects.speed import measure_speed
from benchmarks.results import ResultFile, Row, argument_parser, console_table
from microseg.annotations.index_masks import read_mask
from microseg.annotations.instance_masks import read_instances
from microseg.api.training import adapt, train
from microseg.config.settings import load_settings
from microseg.config.training_params import NetworkSettings
from microseg.datasets.lab import read_lab_metadata
from microseg.evaluation.references import LabelObjects, Reference, mean_scores, score
from microseg.inference.engine import Engine
from microseg.models.files import load_network
from microseg.models.separation import Separation, class_mask, label_objects, separate_objects
from microseg.slides.region import ImageSource
from microseg.training.devices import make_fabric

__all__ = ["main"]

SOURCE_ONLY, ADAPTED, UPPER_BOUND = "source_only", "adapted", "upper_bound"
_FOLDS = 2
METRICS = {
    "f1": "f1_at_50",
    "mean_f1": "mean_f1",
    "pq": "panoptic_quality",
    "aji": "aji",
    "count_error": "count_error",
    "dice": "dice",
}


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark, print the table and write it."""
    parser = argument_parser("benchmarks.objects", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the tasks")
    parser.add_argument("--task", nargs="+", required=True, help="folders in --data")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--stages", nargs="+", default=[SOURCE_ONLY, ADAPTED, UPPER_BOUND],
                        choices=[SOURCE_ONLY, ADAPTED, UPPER_BOUND])  # fmt: skip
    parser.add_argument("--semantic-stages", nargs="*", choices=[SOURCE_ONLY, ADAPTED, UPPER_BOUND],
                        help="stages of the network without the head; default: all of --stages")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("var/benchmarks/objects"))
    parser.add_argument("--json", type=Path, help="file of the rows, with command, date, commit and machine")
    parser.add_argument("--set", nargs="+", default=[], metavar="section.name=value", help="parameters to override")
    chosen = parser.parse_args(arguments)
    console, rows, speed = Console(), list[Row](), list[Row]()
    file = ResultFile(chosen.json, "benchmarks.objects", arguments)
    stages = {True: chosen.stages, False: chosen.stages if chosen.semantic_stages is None else chosen.semantic_stages}
    for name in chosen.task:
        task = find_task(name, chosen.data, chosen.out / "generated")
        for seed in chosen.seeds:
            runs = {head: _Run(task, seed, head, chosen.out.absolute(), tuple(chosen.set)) for head in (True, False)}
            for with_head, run in runs.items():
                for row in run.rows(stages[with_head]):
                    rows.append(row)
                    console.print(row)
                    file.write(rows=rows, speed=speed)
        if all(SOURCE_ONLY in each for each in stages.values()):
            speed.append(measure_speed(task, *(run.folder(SOURCE_ONLY) for run in runs.values())))
            console.print(speed[-1])
    file.write(rows=rows, speed=speed)
    if rows:
        console.print(console_table(pd.DataFrame(rows).round(3), "Objects"))


@dataclass(frozen=True)
class _Run:
    task: Task
    seed: int
    with_head: bool
    out: Path
    changes: tuple[str, ...]

    def rows(self, stages: Sequence[str]) -> Iterator[Row]:
        """Train the networks of the stages and score them."""
        source_references, target_references = (self.task.references(role) for role in ("source", "target"))
        if SOURCE_ONLY in stages or ADAPTED in stages:
            source, target = open_labs(self.task, self.out / "data" / self.task.name)
            first = self._network("source_only", partial(self._train, [source.folder]))
            if SOURCE_ONLY in stages:
                yield from self._score(SOURCE_ONLY, first, source_references, target=False)
                yield from self._score(SOURCE_ONLY, first, target_references, target=True)
        if ADAPTED in stages:
            settings = load_settings(list(self.changes)).params.adapt
            adapted = self._network(
                "adapted",
                lambda folder: adapt(
                    first, [source], [target], settings, folder=folder, seed=self.seed, fabric=make_fabric()
                ),
            )
            yield from self._score(ADAPTED, adapted, source_references, target=False)
            yield from self._score(ADAPTED, adapted, target_references, target=True)
        if UPPER_BOUND in stages:
            yield from self._upper_bound()

    def folder(self, stage: str) -> Path:
        """Folder of a network."""
        kind = "instances" if self.with_head else "semantic"
        return self.out / "networks" / self.task.name / f"{kind}-{stage}-{self.seed}"

    def _upper_bound(self) -> Iterator[Row]:
        """Training on the target's test images, in folds."""
        parts = []
        folds = fold_labs(self.task, _FOLDS, self.out / "data" / self.task.name / "folds")
        for number, (lab, held_out) in enumerate(folds):
            network = self._network(f"upper_bound_{number}", partial(self._train, [lab.folder]))
            parts.append(list(self._score(UPPER_BOUND, network, held_out, target=True)))
        for rows in zip(*parts, strict=True):
            means = {key: float(np.mean([row[key] for row in rows])) for key in METRICS}
            yield rows[0] | means

    def _train(self, labs: list[Path], folder: Path) -> None:
        params = load_settings(list(self.changes)).params
        classes = read_lab_metadata(labs[0]).classes[1:] if self.with_head else ()
        network = NetworkSettings(**params.network.model_dump() | {"instances": classes})
        train(labs, network, params.train, folder=folder, seed=self.seed, fabric=make_fabric(params.device))

    def _network(self, stage: str, make: Callable[[Path], object]) -> Path:
        """Folder of a network, which is trained where it is missing."""
        folder = self.folder(stage)
        if not folder.is_dir():
            part = folder.with_name(folder.name + ".part")
            shutil.rmtree(part, ignore_errors=True)
            started = time.process_time()
            make(part)
            (part / "seconds.json").write_text(json.dumps(time.process_time() - started))
            part.rename(folder)
        return folder

    def _score(self, stage: str, folder: Path, references: Sequence[Reference], *, target: bool) -> Iterator[Row]:
        network = load_network(folder)
        engine = Engine(network)
        ways: dict[str, LabelObjects] = {"components": lambda outputs, _mpp: label_objects(_mask(outputs, engine))}
        shapes = Separation(tuple(range(1, len(engine.classes))), by_shape=True)
        ways["split"] = lambda outputs, _mpp: separate_objects(_mask(outputs, engine), None, shapes)
        ways["watershed"] = lambda outputs, _mpp: split_by_distance(_mask(outputs, engine))
        if self.with_head:
            ways["instances"] = engine.label_objects
        annotations = map(_annotated, references)  # which are scored in this order
        ways["as annotated"] = lambda outputs, mpp: split_as_annotated(
            _mask(outputs, engine), next(annotations), engine.separation(mpp).smallest_area
        )
        prefix = "" if self.with_head else "semantic "
        outputs: dict[ImageSource, npt.NDArray[np.float32] | None] = dict.fromkeys(it.image for it in references)
        for way, label in ways.items():
            table = score(_cached(engine, outputs), references, engine.classes, objects=True, label=label)
            means = mean_scores(table)
            values = {key: means[metric] for key, metric in METRICS.items()}
            yield {"task": self.task.name, "method": f"{prefix}{stage} {way}", "seed": self.seed, **values,
                   "target": target}  # fmt: skip


def _cached(
    engine: Engine, known: dict[ImageSource, npt.NDArray[np.float32] | None]
) -> Callable[..., npt.NDArray[np.float32]]:
    """Outputs of the engine, computed once for each image, which are asked for in the order of the keys."""
    keys = iter(list(known))

    def outputs(image: npt.NDArray[np.uint8], mpp: float | None) -> npt.NDArray[np.float32]:
        key = next(keys)
        found = known[key]
        if found is None:
            found = known[key] = engine.outputs(image, mpp)
        return found

    return outputs


def _annotated(reference: Reference) -> npt.NDArray[np.int32]:
    """Numbered objects of a reference; connected regions where they are not numbered, as in its scores."""
    if reference.instances is None:
        return label_objects(read_mask(reference.mask))
    return read_instances(reference.instances)


def _mask(outputs: npt.NDArray[np.float32], engine: Engine) -> npt.NDArray[np.uint8]:
    return class_mask(outputs[: len(engine.classes)])


if __name__ == "__main__":
    main()
