"""Time of a network with an instance head and of its objects, against that of the network without the head."""

import statistics
import time
from pathlib import Path

from benchmarks.adaptation.tasks import Task
from benchmarks.results import Row
from microseg.inference.engine import Engine
from microseg.models.files import load_network
from microseg.slides.region import read_source

__all__ = ["measure_speed"]

_IMAGES = 4  # of the target's test set
_ROUNDS = 15


def measure_speed(task: Task, with_head: Path, semantic: Path) -> Row:
    """Segment the same images with both networks in turn, to numbered objects.

    Args:
        task: The task, whose target's test images are segmented.
        with_head: Folder of the network with the head.
        semantic: Folder of the network without it.

    Returns:
        CPU seconds per megapixel of each network (median), the part of them that is spent on the objects, and the
        ratio: median, least and most of the rounds.
    """
    engines = [Engine(load_network(folder)) for folder in (with_head, semantic)]
    references = task.references("target")[:_IMAGES]
    images = [(read_source(it.image), it.mpp) for it in references]
    megapixels = sum(image.shape[0] * image.shape[1] for image, _ in images) / 1e6
    times: list[list[tuple[float, float]]] = []  # of each round, of both networks: all, and the objects
    for number in range(_ROUNDS + 1):  # the first one warms up
        both = []
        for engine in engines if number % 2 else engines[::-1]:
            total = objects = 0.0
            for image, mpp in images:
                started = time.process_time()
                outputs = engine.outputs(image, mpp)
                middle = time.process_time()
                engine.label_objects(outputs, mpp)
                ended = time.process_time()
                total, objects = total + ended - started, objects + ended - middle
            both.append((total / megapixels, objects / megapixels))
        times.append(both if number % 2 else both[::-1])
    rounds = times[1:]
    ratios = [head[0] / plain[0] for head, plain in rounds]
    row: Row = {"task": task.name, "ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    for number, name in enumerate(("with_head", "semantic")):
        row[f"seconds_per_megapixel_{name}"] = statistics.median(one[number][0] for one in rounds)
        row[f"of_these_objects_{name}"] = statistics.median(one[number][1] for one in rounds)
    return row
