"""The study: measures what is missing, keeps every finished row."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.adaptation.methods import SOURCE_ONLY
from benchmarks.adaptation.tasks import Task
from benchmarks.evidence.measuring import Ground, Image, evidence, true_dice
from benchmarks.evidence.networks import Images, Subject, kept_networks, subjects
from benchmarks.results import ResultRows, Row
from microseg.evaluation.label_free import lab_targets
from microseg.inference.engine import Engine
from microseg.slides.images import read_image

__all__ = ["Row", "Study"]

_STATISTICS_IMAGES = 8


@dataclass
class Study(ResultRows):
    """A study whose rows lie in a folder, also those of other grids and numbers of images.

    Attributes:
        grids: folders of adaptation grids.
        images: at most so many of each lab are looked at.
    """

    grids: tuple[Path, ...]
    images: int

    def plan(self, tasks: Sequence[Task], seeds: Sequence[int] | None) -> list[tuple[Task, Subject]]:
        """The networks to measure: task by task, seed by seed, ``source_only`` first.

        Args:
            tasks: the tasks.
            seeds: only these; None for all that the grids have.

        Raises:
            SettingsError: when the grids lack a task or its ``source_only``.
        """
        planned = []
        for task, other in zip(tasks, [*tasks[1:], *tasks[:1]], strict=True):
            wrong: Mapping[str, Images] = {} if other is task else {other.name: partial(self._some, other)}
            for seed, kept in kept_networks(self.grids, task.name).items():
                if seeds is None or seed in seeds:
                    planned += [(task, subject) for subject in subjects(seed, kept, wrong)]
        return planned

    def run(self, planned: Sequence[tuple[Task, Subject]]) -> Iterator[Row]:
        """Finish the study, row by row; only the rows that it gives belong to it."""
        grounds: dict[str, Ground] = {}
        teachers: dict[tuple[str, int], list[Image]] = {}
        production: dict[tuple[str, int], Subject] = {}
        for task, subject in planned:
            key = (task.name, subject.seed)
            if subject.name == SOURCE_ONLY:
                production[key] = subject
            asked = {
                "task": task.name,
                "seed": subject.seed,
                "network": subject.name,
                "made": subject.made,
                "parents": [*subject.parents, *(() if subject.name == SOURCE_ONLY else production[key].parents)],
                "images": self.images,
            }
            known = next((row for row in self.rows if row.items() >= asked.items()), None)
            if known is None:
                if task.name not in grounds:
                    grounds[task.name] = self._ground(task)
                ground = grounds[task.name]
                if subject.name != SOURCE_ONLY and key not in teachers:
                    teachers[key] = ground.masks(Engine(production[key].build()))
                known = asked | self._measure(task, subject, ground, teachers.get(key))
                self.add(known)
            yield known

    def _measure(self, task: Task, subject: Subject, ground: Ground, teacher: list[Image] | None) -> Row:
        began = time.process_time()  # of all cores, whatever else runs on them
        network = subject.build()
        found = evidence(network, ground, None if subject.name == SOURCE_ONLY else teacher)
        truth = true_dice(network, task.references("target"))  # for the report alone: after all else, used by nothing
        return found | {"target_dice": truth, "cpu_seconds": time.process_time() - began}

    def _ground(self, task: Task) -> Ground:
        return Ground.of(task, self.out / "work" / task.name, self.images)

    def _some(self, task: Task) -> list[npt.NDArray[np.uint8]]:
        target = self._ground(task).target
        return [read_image(each.image) for each in lab_targets(target, _STATISTICS_IMAGES)]
