"""Grid of tasks, methods and seeds: trains the missing networks, evaluates them, keeps every finished row."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.adaptation.apart import train_apart
from benchmarks.adaptation.methods import SOURCE_ONLY, UPPER_BOUND
from benchmarks.adaptation.tasks import Task, fold_labs, open_labs
from benchmarks.results import ResultRows, Row
from microseg.datasets.manifest import MANIFEST_FILE
from microseg.evaluation.references import Reference, mean_scores, score
from microseg.inference.engine import Engine
from microseg.models.files import load_network

__all__ = ["Grid", "Row"]

_FOLDS = 3
_UNLIMITED = 1_000_000  # steps, where the time limit ends a training


@dataclass
class Grid(ResultRows):
    """A grid whose results and networks are in a folder.

    Attributes:
        minutes: Time limit of each adaptation; None for no limit.
        steps: Steps of each adaptation; None for as many as the time limit allows.
        changes: Values that override parameters.
    """

    minutes: float | None
    steps: int | None = None
    changes: tuple[str, ...] = ()

    def run(self, tasks: Sequence[Task], methods: Sequence[str], seeds: Sequence[int]) -> Iterator[Row]:
        """Compute the missing rows; yields all rows in order."""
        for seed in seeds:
            for task in tasks:
                for method in methods:
                    row = next((it for it in self.rows if _key(it) == (task.name, method, seed)), None)
                    if row is None:
                        row = self._row(task, method, seed)
                        self.add(row)
                    yield row

    def _row(self, task: Task, method: str, seed: int) -> Row:
        work = self.out / "work" / task.name
        source_lab, target_lab = open_labs(task, work)
        job: dict[str, Any] = {
            "task_folder": str(task.source.parent.resolve()),
            "changes": list(self.changes),
            "source": str(source_lab.folder),
            "targets": [str(target_lab.folder)],
            "seed": seed,
            "steps": self.steps or _UNLIMITED,
        }
        place = work / f"seed-{seed}"
        first = self._source_only(job | {"kind": "train", "minutes": None, "start": None}, place / SOURCE_ONLY)
        row: Row = {"task": task.name, "method": method, "seed": seed}
        if method == UPPER_BOUND:
            return row | self._upper_bound(task, job, first, place)
        network = first
        if method != SOURCE_ONLY:
            more = {"kind": "adapt", "method": method, "minutes": self.minutes, "start": str(first)}
            network = train_apart(job | more, place / method)
        return row | {
            **_report("source", [(network, task.references("source"))]),
            **_report("target", [(network, task.references("target"))]),
            "minutes": 0.0 if method == SOURCE_ONLY else _minutes(network),
        }

    def _source_only(self, job: dict[str, Any], folder: Path) -> Path:
        """Train the source segmenter; tasks with the same source lab share it."""
        for file in sorted(self.out.glob(f"work/*/{folder.parent.name}/{folder.name}.job.json")):
            other, trained = json.loads(file.read_text()), file.with_name(SOURCE_ONLY)
            same = other["changes"] == job["changes"] and _manifest(other["source"]) == _manifest(job["source"])
            if same and (trained / "minutes.json").exists() and not folder.exists():
                shutil.copytree(trained, folder)
        return train_apart(job, folder)

    def _upper_bound(self, task: Task, job: dict[str, Any], first: Path, place: Path) -> Row:
        """Train on the labels of the target lab, with cross-validation."""
        folds = fold_labs(task, _FOLDS, place / "folds")
        evaluated = []
        for number, (lab, held_out) in enumerate(folds):
            more: dict[str, Any] = {"kind": "train", "source": str(lab.folder), "start": str(first)}
            more |= {"task_folder": str(self.out / "none"), "steps": -(-job["steps"] // len(folds))}
            more |= {"minutes": self.minutes / len(folds) if self.minutes else None}
            evaluated.append((train_apart(job | more, place / f"{UPPER_BOUND}-{number}"), held_out))
        source = [_report("source", [(network, task.references("source"))]) for network, _ in evaluated]
        row: Row = {
            "source_dice": float(np.mean([each["source_dice"] for each in source])),
            **_report("target", evaluated),
            "minutes": sum(_minutes(network) for network, _ in evaluated),
        }
        return row


def _minutes(network: Path) -> float:
    """Minutes that the training of a network took."""
    return float(json.loads((network / "minutes.json").read_text()))


def _manifest(dataset: str) -> str:
    """Manifest of a lab's dataset, which identifies its images."""
    return (Path(dataset) / MANIFEST_FILE).read_text()


def _report(side: str, evaluated: Sequence[tuple[Path, Sequence[Reference]]]) -> Row:
    """Dice on the held-out test images."""
    tables: list[pd.DataFrame] = []
    classes: tuple[str, ...] = ()
    for folder, references in evaluated:
        engine = Engine(load_network(folder))
        classes = engine.classes
        tables.append(score(engine.probabilities, references, classes))
    means = mean_scores(pd.concat(tables))
    per_class = {name: means[f"dice_{name}"] for name in classes[1:]}
    return {f"{side}_dice": means["dice"], f"{side}_dice_per_class": per_class}


def _key(row: Row) -> tuple[str, str, int]:
    return row["task"], row["method"], row["seed"]
