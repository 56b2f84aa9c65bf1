"""Tasks: folders with one labelled and one unlabelled lab."""

import argparse
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.adaptation.synthetic import FAMILIES, SYNTHETIC, SYNTHETIC_TASKS, make_synthetic_task
from microseg.datasets.dataset import LabDataset, open_lab_dataset
from microseg.datasets.ingest import ingest_lab
from microseg.datasets.lab import read_lab_metadata
from microseg.errors import LabError
from microseg.evaluation.references import Reference, held_out_references

__all__ = [
    "Task",
    "add_task_arguments",
    "as_dataset",
    "chosen_names",
    "expand_names",
    "find_task",
    "find_tasks",
    "fold_labs",
    "open_labs",
]

_VALIDATION = 0.1


@dataclass(frozen=True)
class Task:
    """A labelled lab and an unlabelled one.

    Attributes:
        name: Name of the task.
        source: Folder of the labelled lab.
        target: Folder of the unlabelled lab.
    """

    name: str
    source: Path
    target: Path

    def references(self, role: str) -> tuple[Reference, ...]:
        """Held-out test images and masks; for evaluation only."""
        folder = self.source if role == "source" else self.target
        found = held_out_references(folder, read_lab_metadata(folder))
        if not found:
            raise LabError(f"{folder}: expected test/images and test/masks, found none; add a held-out test set.")
        return found


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--data`` and ``--task`` to a command; `find_tasks` takes what was chosen."""
    parser.add_argument("--data", type=Path, help="folder of the tasks; not needed for synthetic ones")
    parser.add_argument("--task", nargs="+", action="extend",
                        help=f"folders in --data, a synthetic task, or a family: {', '.join(FAMILIES)}")  # fmt: skip


def chosen_names(chosen: argparse.Namespace) -> list[str]:
    """Names of the chosen tasks, each once; the synthetic one where none was chosen."""
    return expand_names(chosen.task or [SYNTHETIC])


def find_tasks(chosen: argparse.Namespace, work: Path) -> list[Task]:
    """Find the chosen tasks; see `find_task`."""
    return [find_task(name, chosen.data, work) for name in chosen_names(chosen)]


def expand_names(names: Iterable[str]) -> list[str]:
    """Replace families of synthetic tasks, such as ``synthetic/balance``, by their members."""
    return list(dict.fromkeys(member for name in names for member in FAMILIES.get(name, (name,))))


def find_task(name: str, root: Path | None, work: Path) -> Task:
    """Find a task by its name.

    Args:
        name: One of `SYNTHETIC_TASKS`, which are generated in ``work``, or a folder in ``root``.
        root: Folder of the tasks.
        work: Folder that synthetic tasks are generated in.

    Raises:
        LabError: The folder is missing, or does not have one labelled and one unlabelled lab.
    """
    if name in SYNTHETIC_TASKS:
        return Task(name, *make_synthetic_task(name, work))
    folder = (root or Path()) / name
    if root is None or not folder.is_dir():
        known = sorted(it.name for it in root.iterdir() if it.is_dir()) if root is not None and root.is_dir() else []
        raise LabError(f"Expected a folder {folder} with two labs, found none; --data has {known}.")
    labs = [it for it in sorted(folder.iterdir()) if (it / "lab.yaml").is_file()]
    with_masks = [it for it in labs if (it / "masks").is_dir()]
    without = [it for it in labs if not (it / "masks").is_dir()]
    if len(with_masks) != 1 or len(without) != 1:
        raise LabError(
            f"{folder}: expected one labelled and one unlabelled lab, got {[it.name for it in with_masks]} and "
            f"{[it.name for it in without]}."
        )
    return Task(name, with_masks[0], without[0])


def open_labs(task: Task, work: Path) -> tuple[LabDataset, LabDataset]:
    """Open the datasets of both labs, without ``test/``; they are ingested where missing."""
    return as_dataset(task.source, work), as_dataset(task.target, work)


def fold_labs(task: Task, folds: int, work: Path) -> list[tuple[LabDataset, tuple[Reference, ...]]]:
    """Cross-validation over the target's test images: a labelled lab to train on, and the fold to evaluate, each."""
    references = task.references("target")
    card = (task.target / "lab.yaml").read_text()
    card = "\n".join(line for line in card.splitlines() if not line.startswith("labelled"))
    result = []
    test_folds = [set(range(first, len(references), folds)) for first in range(min(folds, len(references)))]
    for number, chosen in enumerate(test_folds):
        incoming = work / f"fold-{number}"
        shutil.rmtree(incoming, ignore_errors=True)
        for part in ("images", "masks"):
            (incoming / part).mkdir(parents=True)
        (incoming / "lab.yaml").write_text(card + "\n")
        for index, reference in enumerate(references):
            if index not in chosen:
                assert isinstance(reference.image, Path)
                shutil.copy(reference.image, incoming / "images" / reference.image.name)
                shutil.copy(reference.mask, incoming / "masks" / reference.mask.name)
                if reference.instances is not None:
                    (incoming / "instances").mkdir(exist_ok=True)
                    shutil.copy(reference.instances, incoming / "instances" / reference.instances.name)
        lab = as_dataset(incoming, work / f"data-{number}", validation=0.0)
        result.append((lab, tuple(references[index] for index in sorted(chosen))))
    return result


def as_dataset(folder: Path, work: Path, validation: float = _VALIDATION) -> LabDataset:
    """Dataset of a lab in ``work/labs``, without ``test/``; it is ingested where missing."""
    name = read_lab_metadata(folder).lab
    dataset = work / "labs" / name
    if not dataset.is_dir():
        ingest_lab(folder, work / "labs", work / "quarantine", val_fraction=validation, test_fraction=0.0)
    return open_lab_dataset(dataset)
