"""Cost of a slide around the network, on a machine whose device computes that: the part that is serial. By `outputs`.

The slide is tissue everywhere, compressed without loss. The network is replaced by one that reads the classes out of
the pixels, whose lowest bit holds them; its time and that of blending, which the device would do, are left out. Readers
are processes, and outputs are made by threads, as on CUDA.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pandas as pd
import psutil
import torch

from benchmarks.results import spread
from benchmarks.workload import make_slide
from microseg.annotations.index_masks import IGNORE, read_mask
from microseg.inference import engine as engine_module
from microseg.inference import slide as slide_module
from microseg.inference import stream
from microseg.inference.engine import Engine
from microseg.inference.image_files import BatchOptions
from microseg.models.config import NetworkConfig
from microseg.models.network import PyramidSegmenter
from microseg.outputs.record import Provenance
from microseg.outputs.segmentation_writer import SegmentationWriter
from microseg.slides.images import read_image

__all__ = ["measure_slide", "slide_table"]

_BLOCK = 1984  # tiles of the default settings on a large device
_MPP = 0.5
_CHANCE = 0.02  # probability of the other class


class _MarkedPixels:
    """Stands for the network: the lowest bit of the blue channel is the class."""

    device = torch.device("cpu")
    parallel_tiles, call_size = 1, 1

    def predict(self, tiles: Sequence[npt.NDArray[np.uint8]]) -> torch.Tensor:
        inside = torch.from_numpy(np.stack([tile[..., 2] for tile in tiles]) & 1)
        probability = inside.float().mul_(1 - 2 * _CHANCE).add_(_CHANCE)
        return torch.stack([1 - probability, probability], dim=1)

    def submit(self, tiles: Sequence[npt.NDArray[np.uint8]]) -> "Future[torch.Tensor]":
        raise NotImplementedError("tiles share batches")


class _Clock:
    """CPU time of parts of `segment_slide`, in the thread that each runs in."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[part] += time.thread_time() - began

        return call


def measure_slide(
    lab: Path, folder: Path, kinds: Mapping[str, Sequence[str]], *, side: int, threads: int, runs: int
) -> list[dict[str, Any]]:
    """Core-seconds of a slide for each kind of outputs; runs alternate between them.

    Args:
        lab: Folder with images/ and masks/ of one size, a multiple of 64.
        folder: Folder of the slide.
        kinds: Output writers by name.
        side: Side of the slide in pixels.
        threads: Threads that make outputs.
        runs: Number of runs.
    """
    images = sorted((lab / "images").iterdir())[:8]
    blocks = [_mark(read_image(path), read_mask(lab / "masks" / f"{path.stem}.png")) for path in images]
    path = folder / "slide.tif"
    make_slide(path, side=side, blocks=blocks, mpp=_MPP)
    rows: list[dict[str, Any]] = [{"outputs": kind, "megapixels": side**2 / 1e6, "runs": []} for kind in kinds]
    for run in range(runs + 1):  # the first starts processes
        for row in rows:
            values = _segment(path, kinds[row["outputs"]], threads)
            if run:
                row["runs"].append(values)
    return rows


def _mark(image: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    marked = image.copy()
    marked[..., 2] = (image[..., 2] & 254) | ((mask > 0) & (mask != IGNORE))
    return marked


def _segment(path: Path, outputs: Sequence[str], threads: int) -> dict[str, float]:
    config = NetworkConfig(classes=("background", "object"), encoder="blocks", channels=(4, 8), mpp=_MPP)
    clock, network = _Clock(), _MarkedPixels()
    parts = (
        ("strips", slide_module, "_write_strips"),
        ("blend", stream._Row, "add"),
        ("writer", SegmentationWriter, "add"),
        ("after", SegmentationWriter, "finish"),
        ("network", network, "predict"),
    )
    with TemporaryDirectory(dir=path.parent) as out, ExitStack() as patches:
        patches.enter_context(patch.object(engine_module, "tune_allocator"))
        patches.enter_context(patch.object(slide_module, "return_memory"))
        patches.enter_context(patch.object(slide_module, "_output_threads", lambda _: threads, create=True))
        for part, place, name in parts:
            patches.enter_context(patch.object(place, name, clock.timed(part, getattr(place, name))))
        engine = Engine(PyramidSegmenter(config).eval(), block=_BLOCK, shared_batches=True)
        assert engine._queue is not None
        engine._backend = engine._queue._backend = network  # type: ignore[assignment]
        began, process, children = time.thread_time(), time.process_time(), _children()
        slide_module.segment_slide(
            engine, path, Path(out), provenance=Provenance(model="benchmark"), options=BatchOptions(outputs=outputs)
        )
        calling, reading, seconds = time.thread_time() - began, _children() - children, clock.seconds
        return {
            "all": time.process_time() - process + reading - seconds["network"] - seconds["blend"],
            "reading": reading,
            "before": calling - seconds["strips"] - seconds["after"],
            "during": max(seconds["strips"] - seconds["blend"], seconds["writer"]),
            "after": seconds["after"],
        }


def _children() -> float:
    return sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children(recursive=True))


def slide_table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Core-seconds a megapixel: all, of these in readers, and the serial part, with the throughput that it allows."""
    lines = []
    for row in rows:
        megapixels, runs = row["megapixels"], row["runs"]
        serial = [(run["before"] + run["during"] + run["after"]) / megapixels for run in runs]
        line = {"outputs": row["outputs"]}
        for name in ("all", "reading", "before", "during", "after"):
            line[name] = spread([run[name] / megapixels for run in runs], 4)
        lines.append(line | {"serial": spread(serial, 4), "at most MP/s": spread([1 / each for each in serial], 0)})
    return pd.DataFrame(lines)
