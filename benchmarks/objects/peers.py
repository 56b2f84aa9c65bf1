"""Benchmark of objects against StarDist, Cellpose and InstanSeg, trained on the same images for the same time.

    python -m benchmarks.objects.peers --data labs --task nuclei_fluo nuclei_gbm --minutes 4 --python peers/bin/python

Each program learns from random weights on the source lab's labelled images, for `--minutes` of CPU time of one thread,
and finds the objects of both labs' held-out test images; see `benchmarks.objects.peer_trainers`. None of them adapts.
The network with the instance head is trained for the same time, from the ImageNet weights that it starts from by
default (``microseg``) or from random ones (``microseg_random``), and adapted to the target lab for the same time again.
The environment of `--python` needs ``stardist tensorflow-cpu cellpose<4 instanseg-torch[full]``; microseg's own does
not. A program that fails is left out of the table, with its reason.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar
from unittest import mock

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from rich.console import Console

from benchmarks.adaptation.tasks import Task, find_task, open_labs
from benchmarks.objects.__main__ import METRICS
from benchmarks.objects.__main__ import main as own_objects
from benchmarks.results import ResultFile, Row, argument_parser, console_table
from microseg.annotations.instance_masks import read_instances, write_instances
from microseg.errors import LabError
from microseg.evaluation.references import Reference, lab_references, mean_scores, score
from microseg.slides.images import write_png
from microseg.slides.region import read_source

__all__ = ["main", "score_objects"]

OWN, OWN_FROM_RANDOM = "microseg", "microseg_random"
PROGRAMS = ("stardist", "cellpose", "instanseg", OWN, OWN_FROM_RANDOM)
_Number = TypeVar("_Number", np.float32, np.int32)
_NO_LIMIT = 100_000  # steps
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1"
)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark, print the table and write it."""
    parser = argument_parser("benchmarks.objects.peers", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the tasks")
    parser.add_argument("--task", nargs="+", required=True, help="folders in --data")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--minutes", type=float, default=4, help="CPU time of each training, and of the adaptation")
    parser.add_argument("--programs", nargs="+", default=PROGRAMS, choices=PROGRAMS)
    parser.add_argument("--python", type=Path, default=Path("python"), help="interpreter that has the other programs")
    parser.add_argument("--out", type=Path, default=Path("var/benchmarks/peers"))
    parser.add_argument("--json", type=Path, help="file of the rows, with command, date, commit and machine")
    chosen = parser.parse_args(arguments)
    console, rows, failed = Console(), list[Row](), list[Row]()
    file = ResultFile(chosen.json, "benchmarks.objects.peers", arguments)
    for name in chosen.task:
        task = find_task(name, chosen.data, chosen.out / "generated")
        for seed, program in ((seed, program) for seed in chosen.seeds for program in chosen.programs):
            folder = (chosen.out / name / f"{program}-{seed}").absolute()
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            try:
                if program in (OWN, OWN_FROM_RANDOM):
                    rows += _own(chosen.data, name, program, seed, chosen.minutes, folder)
                else:
                    rows += _other(program, task, seed, chosen.minutes, chosen.python, folder)
            except subprocess.CalledProcessError as error:
                reason = (folder / "log.txt").read_text().strip().splitlines()[-1]
                failed.append(
                    {"task": name, "method": program, "seed": seed, "reason": f"{error.returncode}: {reason}"}
                )
                console.print(failed[-1])
            file.write(rows=rows, failed=failed)
    if rows:
        console.print(console_table(pd.DataFrame(rows).round(3), "Objects"))


def _own(data: Path, name: str, program: str, seed: int, minutes: float, folder: Path) -> Iterator[Row]:
    """Rows of microseg's network, whose trainings end when they have used the CPU time of this process."""
    torch.set_num_threads(1)
    clock = SimpleNamespace(monotonic=time.process_time)
    settings = [] if program == OWN else ["network.weights=null"]
    for stage in ("train", "adapt"):
        settings += [f"{stage}.max_minutes={minutes}", f"{stage}.steps={_NO_LIMIT}", f"{stage}.workers=0"]
    with mock.patch("microseg.training.loop.time", clock), mock.patch("microseg.api.training.time", clock):
        own_objects(["--data", str(data), "--task", name, "--seeds", str(seed), "--stages", "source_only", "adapted",
                     "--semantic-stages", "--out", str(folder), "--json", str(folder / "rows.json"),
                     "--set", *settings])  # fmt: skip
    for row in json.loads((folder / "rows.json").read_text())["rows"]:
        if row["method"].split()[-1] in ("components", "instances"):
            yield row | {"method": f"{program} {row['method']}"}


def _other(program: str, task: Task, seed: int, minutes: float, python: Path, folder: Path) -> Iterator[Row]:
    """Rows of another program, which sees the source lab's images and labels and the images of the tests."""
    source, _ = open_labs(task, folder / "data")
    parts = {"train": lab_references(source, "train"), "held_out": lab_references(source, "val"),
             "source": task.references("source"), "target": task.references("target")}  # fmt: skip
    sizes = {it.mpp for references in parts.values() for it in references}
    if len(sizes) > 1:
        raise LabError(f"{task.name}: expected images of one pixel size, got {sizes}: other programs do not rescale.")
    images = {part: [_image(it, folder / part) for it in parts[part]] for part in parts}
    labels = {part: [_labels(it, folder / part) for it in parts[part]] for part in ("train", "held_out")}
    found = {part: [it.with_suffix(".labels.png") for it in images[part]] for part in ("source", "target")}
    files = labels | found
    pairs = {it: [list(map(str, pair)) for pair in zip(images[it], files[it], strict=True)] for it in parts}
    text = json.dumps(pairs | {"program": program, "seed": seed, "seconds": 60 * minutes, "folder": str(folder)})
    (folder / "job.json").write_text(text)
    with (folder / "log.txt").open("w") as log:
        command = [str(python), str(Path(__file__).with_name("peer_trainers.py")), str(folder / "job.json")]
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT, env=os.environ | _ONE_THREAD)
    report = json.loads((folder / "report.json").read_text())
    for part in ("source", "target"):
        scores = score_objects(parts[part], [read_instances(it) for it in found[part]], source.metadata.classes)
        yield {"task": task.name, "method": program, "seed": seed, **scores, "target": part == "target", **report}


def score_objects(
    references: Sequence[Reference], labels: Sequence[npt.NDArray[np.int32]], classes: tuple[str, ...]
) -> dict[str, float]:
    """Scores of numbered objects, as `benchmarks.objects` has them.

    Args:
        references: Images with their masks and, where there are, numbered objects.
        labels: Number of the object at each pixel of each image, 0 for none.
        classes: Background and the class of the objects.

    Shape:
        labels: (H, W) of each image.

    Raises:
        LabError: There are several classes.
    """
    if len(classes) != 2:
        raise LabError(f"Expected one class of objects, got {list(classes[1:])}: other programs find one.")
    tables = []
    for reference, found in zip(references, labels, strict=True):
        classified = np.stack([found == 0, found > 0]).astype(np.float32)
        segment, label = partial(_given, classified), partial(_given, found)
        tables.append(score(segment, [reference], classes, objects=True, label=label))
    means = mean_scores(pd.concat(tables))
    return {key: means[metric] for key, metric in METRICS.items()}


def _given(found: npt.NDArray[_Number], _image: object, _mpp: float | None) -> npt.NDArray[_Number]:
    return found


def _image(reference: Reference, folder: Path) -> Path:
    """Image of 8 bits as a file that every program reads."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{reference.name}.png"
    write_png(path, read_source(reference.image))
    return path


def _labels(reference: Reference, folder: Path) -> Path:
    if reference.instances is None:
        raise LabError(f"{reference.name}: expected numbered objects in instances/, found none.")
    path = folder / f"{reference.name}.labels.png"
    write_instances(path, read_instances(reference.instances))
    return path


if __name__ == "__main__":
    main()
