"""Input of training: steps a second of the training loop where the network costs nothing but time.

The loop is the real one; the network is replaced by a pause of 5 ms, in which the cores are free, as a GPU leaves them.
Batches are four crops of 192² with masks. What a GPU computes (color changes, the network) is not part of it.

Ways of drawing, alternating in each run:
  whole     in the training's process; the whole image is converted for each crop, and colors are changed on the CPU, as
            before version 0.2: the baseline
  process   in the training's process (workers: 0)
  workers   in other processes (workers: as given)
"""

import itertools
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pandas as pd
import tifffile
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from benchmarks.results import ResultFile, argument_parser, console_table, spread
from microseg.config.training_params import TrainSettings
from microseg.datasets import sampling
from microseg.datasets.decoded import DecodedFiles
from microseg.datasets.image_parts import resample
from microseg.datasets.sampling import Crops, CropSampler, Sample, step_generator
from microseg.slides.images import write_png
from microseg.slides.region import SlideRegion
from microseg.training.color_augmentation import draw_jitter
from microseg.training.devices import Progress, make_fabric
from microseg.training.loading import available_cores
from microseg.training.loop import fit
from microseg.training.method import DrawnCrops, TrainingMethod

__all__ = ["main"]

_PAUSE = 0.005  # seconds, of a step without input
_CROP, _BATCH, _ZOOM = 192, 4, (0.67, 1.5)
_WARM_UP = 40  # steps in which images are decoded and processes start
_WANTED = 100  # steps a second from images of 512² on two cores; half of it from large images
_SOURCES = {"images of 512²": (512, 24), "images of 5000²": (5000, 3), "slides of 5000²": (5000, 3)}
_EPILOG = """\
CPU is the time of all processes a step, which other load on the machine affects less than the steps a second.

Example: python -m benchmarks.training_input --runs 5 --json training-input.json
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argument_parser("benchmarks.training_input", __doc__, _EPILOG)
    parser.add_argument("--runs", type=int, default=3, help="number of runs (default: 3)")
    parser.add_argument("--steps", type=int, default=300, help="measured steps of each run (default: 300)")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes (default: one on each core)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all values to this file")
    chosen = parser.parse_args(arguments)
    file = ResultFile(chosen.json, "benchmarks.training_input", arguments)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="microseg-training-input-") as name:
        sources = {title: _samples(Path(name), title, *size) for title, size in _SOURCES.items()}
        for run, (title, samples) in itertools.product(range(1, chosen.runs + 1), sources.items()):
            print(f"run {run} of {chosen.runs}, {title} ...", file=sys.stderr, flush=True)
            decoded = Path(name) / "decoded"
            for way, workers in (("whole", 0), ("process", 0), ("workers", chosen.workers)):
                if way == "whole" and title.startswith("slides"):
                    continue  # slides were not data then
                values = _measure(samples, way, workers, chosen.steps, decoded)
                rows.append({"run": run, "source": title, "way": way, **values})
    table = pd.DataFrame(rows)
    Console().print(console_table(_summary(table), f"{chosen.workers} workers, {available_cores()} cores"))
    file.write(wanted=_WANTED, rows=rows)


def _summary(table: pd.DataFrame) -> pd.DataFrame:
    lines = []
    for (source, way), part in table.groupby(["source", "way"], sort=False):
        baseline = table[(table["source"] == source) & (table["way"] == "whole")].set_index("run")["rate"]
        gains = (part.set_index("run")["rate"] / baseline).dropna().tolist()
        small = table[(table["source"] == next(iter(_SOURCES))) & (table["way"] == way)].set_index("run")["rate"]
        lines.append(
            {
                "images": source,
                "way": way,
                "steps/s": spread(part["rate"].tolist(), 1),
                "× whole": spread(gains, 1) if gains else "",
                "× 512²": spread((part.set_index("run")["rate"] / small).tolist(), 2),
                "CPU ms/step": spread(part["cpu_ms"].tolist(), 1),
            }
        )
    return pd.DataFrame(lines)


def _measure(samples: list[Sample], way: str, workers: int, steps: int, folder: Path) -> dict[str, float]:
    whole = way == "whole"
    decoded = DecodedFiles(memory=2**31) if whole else DecodedFiles(folder)
    sampler = CropSampler(samples, size=_CROP, batch=_BATCH, seed=0, zoom=_ZOOM, classes=2, decoded=decoded)
    large = whole and any(isinstance(it.image, Path) and it.image.stat().st_size > 2**24 for it in samples)
    warm_up, measured = (3, 8) if large else (_WARM_UP, steps)
    settings = TrainSettings(
        steps=warm_up + measured,
        evaluate_every=10**6,
        checkpoint_every=10**6,
        ema_decay=0,
        workers=workers,
    )
    times: dict[int, tuple[float, float]] = {}

    def on_step(step: int, _losses: Mapping[str, float]) -> None:
        if step in (warm_up, warm_up + measured):
            times[step] = time.perf_counter(), time.process_time()

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with patch.object(sampling, "resample", _whole_image if whole else resample):
        fit(_Pause(sampler, settings, colors=whole), fabric=make_fabric("cpu"), progress=Progress(on_step))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    (start, own_start), (end, own_end) = times.values()
    children = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    cpu = (own_end - own_start) / measured + children / (warm_up + measured)
    return {"rate": measured / (end - start), "cpu_ms": 1000 * cpu}


class _Pause(TrainingMethod):
    """Draws crops, and waits in place of a GPU."""

    def __init__(self, sampler: CropSampler, settings: TrainSettings, *, colors: bool) -> None:
        network: Any = nn.Linear(1, 1)
        super().__init__(network, settings)
        self.sampler, self.colors = sampler, colors

    def batch(self, step: int, *, rank: int, world: int) -> DrawnCrops:
        """Crops, with the random numbers of their color changes."""
        crops = self.sampler.draw_bytes(step, rank=rank, world=world)
        generator = step_generator(0, step, rank)
        return DrawnCrops(crops, draw_jitter(len(crops.images), self.settings.source_color_jitter, generator))

    def augment(self, batch: DrawnCrops, step: int, *, rank: int) -> Crops:
        """Crops with color changes, only where the CPU makes them."""
        return batch.changed(step_generator(0, step, rank, device=torch.device("cpu"))) if self.colors else batch.crops

    def forward(self, batch: Crops, progress: float) -> dict[str, Tensor]:  # noqa: ARG002
        """A loss of the right kind, after the time of a step."""
        assert len(batch.images) == _BATCH
        time.sleep(_PAUSE)
        return {"total": sum(parameter.sum() for parameter in self.network.parameters())}  # type: ignore[dict-item]


def _whole_image(
    image: npt.NDArray[np.uint8],
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    filter_: Image.Resampling,
    _least: int,
) -> npt.NDArray[np.uint8]:
    """A part of an image as Pillow resamples it, which needs the whole image in Pillow's own form."""
    return np.asarray(Image.fromarray(image).resize(size, filter_, box))


def _samples(folder: Path, title: str, side: int, count: int) -> list[Sample]:
    """Images of soft blobs, or slides of tiles of 256² in JPEG, with masks."""
    made = []
    rng = np.random.default_rng(side)
    for number in range(count):
        small = rng.integers(60, 255, (side // 16 + 1, side // 16 + 1, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))
        stem = folder / f"{title.split(maxsplit=1)[0]}-{side}-{number}"
        mask = stem.with_suffix(".mask.png")
        write_png(mask, (pixels[..., 0] > 128).astype(np.uint8))
        image: Path | SlideRegion
        if title.startswith("slides"):
            slide = partial(tifffile.imwrite, tile=(256, 256), photometric="rgb", compression="jpeg")
            slide(stem.with_suffix(".tif"), pixels)
            image = SlideRegion(stem.with_suffix(".tif"), (0, 0, side, side))
        else:
            image = stem.with_suffix(".png")
            write_png(image, pixels)
        made.append(Sample(image, mask))
    return made


if __name__ == "__main__":
    main()
