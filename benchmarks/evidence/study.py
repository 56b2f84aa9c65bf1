"""The study: measures missing rows and stores every finished one."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.adaptation.methods import SOURCE_ONLY
from benchmarks.adaptation.tasks import Task, open_labs
from benchmarks.evidence.measurement import EvaluationImages, evidence, report_images, true_dice
from benchmarks.evidence.networks import Candidate, Images, candidates, grid_networks
from benchmarks.evidence.predictions import StoredPredictions
from benchmarks.results import ResultRows, Row
from microseg.evaluation.label_free import lab_targets
from microseg.slides.region import read_source

__all__ = ["Row", "Study"]

_STATISTICS_IMAGES = 8
_REPORT_IMAGES = 2  # test images of the target lab, relative to the number of images


@dataclass
class Study(ResultRows):
    """A study; its folder may also have rows of other grids and numbers of images.

    Args:
        grids: Folders of ``benchmarks.adaptation``.
        images: Largest number of evaluated images of each lab.
    """

    grids: tuple[Path, ...]
    images: int

    def plan(self, tasks: Sequence[Task], seeds: Sequence[int] | None) -> list[tuple[Task, Candidate]]:
        """List the networks to measure: task by task, seed by seed, ``source_only`` first.

        Args:
            tasks: The tasks.
            seeds: Only these; None for all of the grids.

        Raises:
            SettingsError: The grids lack a task or its ``source_only``.
        """
        planned = []
        for task, other in zip(tasks, [*tasks[1:], *tasks[:1]], strict=True):
            others: Mapping[str, Images] = (
                {} if other is task else {other.name: partial(self._statistics_images, other)}
            )
            for seed, networks in grid_networks(self.grids, task.name).items():
                if seeds is None or seed in seeds:
                    own = partial(self._statistics_images, task)
                    planned += [(task, candidate) for candidate in candidates(seed, networks, others, own)]
        return planned

    def run(self, planned: Sequence[tuple[Task, Candidate]]) -> Iterator[Row]:
        """Run the study; yields its rows."""
        images_by_task: dict[str, EvaluationImages] = {}
        production: dict[tuple[str, int], Candidate] = {}
        for task, candidate in planned:
            key = (task.name, candidate.seed)
            if candidate.name == SOURCE_ONLY:
                production[key] = candidate
            key_values = {
                "task": task.name,
                "seed": candidate.seed,
                "network": candidate.name,
                "degraded": candidate.degraded,
                "parents": [*candidate.parents, *(() if candidate.name == SOURCE_ONLY else production[key].parents)],
                "images": self.images,
            }
            row = next((one for one in self.rows if one.items() >= key_values.items()), None)
            if row is None:
                if task.name not in images_by_task:
                    images_by_task[task.name] = self._images(task)
                row = key_values | self._measure(task, candidate, images_by_task[task.name], production[key])
                self.add(row)
            yield row

    def _measure(self, task: Task, candidate: Candidate, images: EvaluationImages, production: Candidate) -> Row:
        start = time.process_time()  # of all cores
        network = self._predictions(task, candidate)
        other = None if candidate is production else self._predictions(task, production)
        measured = evidence(network, images, other)
        references = report_images(task, "target", self._work(task), _REPORT_IMAGES * self.images)
        target_dice = true_dice(network, references, images.source.metadata.classes)  # last, for the report only
        return measured | {"target_dice": target_dice, "cpu_seconds": time.process_time() - start}

    def _predictions(self, task: Task, candidate: Candidate) -> StoredPredictions:
        identity = repr((task.name, candidate.seed, candidate.name, candidate.parents)).encode()
        return StoredPredictions(self.out / "predictions" / sha256(identity).hexdigest()[:16], candidate.build)

    def _work(self, task: Task) -> Path:
        return self.out / "work" / task.name

    def _images(self, task: Task) -> EvaluationImages:
        return EvaluationImages.of(task, self._work(task), self.images)

    def _statistics_images(self, task: Task) -> list[npt.NDArray[np.uint8]]:
        target = open_labs(task, self._work(task))[1]
        return [read_source(each.image) for each in lab_targets(target, _STATISTICS_IMAGES)]
