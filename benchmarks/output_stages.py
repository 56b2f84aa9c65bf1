"""CPU time of each stage around the network, in one thread: reading, features, classes, objects, and each output.

    python -m benchmarks.output_stages --lab LAB --json stages.json

The network is replaced by results that were computed before, as in `benchmarks.outputs`, and files are read in this
process. A stage does not contain the stages that it calls. Numbers are core-seconds a megapixel.
"""

import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before they are read
    os.environ[_name] = "1"

import imagecodecs  # noqa: E402
import pandas as pd  # noqa: E402
from rich.console import Console  # noqa: E402

from benchmarks.outputs import KINDS, precomputed_engine, reference_of  # noqa: E402
from benchmarks.results import ResultFile, argument_parser, console_table, spread, table_cells  # noqa: E402
from microseg import limits  # noqa: E402
from microseg.annotations.index_masks import read_mask  # noqa: E402
from microseg.inference import engine as engine_module  # noqa: E402
from microseg.inference import image_files  # noqa: E402
from microseg.inference.image_files import BatchOptions, ImageFiles, ReadImage  # noqa: E402
from microseg.outputs import objects, pieces, segmentation_writer  # noqa: E402
from microseg.outputs.batch_summary import ImageTask  # noqa: E402
from microseg.outputs.label_image import LabelImageWriter  # noqa: E402
from microseg.outputs.measurements import ObjectTableWriter  # noqa: E402
from microseg.outputs.outlines import OutlinesWriter  # noqa: E402
from microseg.outputs.overlay import OverlayWriter  # noqa: E402
from microseg.outputs.record import Provenance  # noqa: E402
from microseg.slides.identity import KnownHashes  # noqa: E402
from microseg.slides.images import read_image  # noqa: E402

__all__ = ["main"]

_STAGES: Sequence[tuple[str, Any, str]] = (
    ("read: decompress PNG by libdeflate", imagecodecs, "deflate_decode"),
    ("read: filters of PNG by libpng", imagecodecs, "png_decode"),
    ("read: checks, pixel size", image_files, "read_file"),
    ("read: hash of the file", KnownHashes, "sha256"),
    ("features of the out-of-distribution score", image_files, "image_ood_score"),
    ("blend tiles", engine_module.Engine, "_predict"),
    ("classes, confidence, entropy", engine_module, "classify"),
    ("objects: connected regions", pieces, "_label"),
    ("objects: sums, perimeters", pieces, "sum_objects"),
    ("objects: outlines", pieces, "outline_regions"),
    ("objects: measurements", objects, "tabulate"),
    ("outlines: GeoJSON", OutlinesWriter, "add_objects"),
    ("objects: CSV", ObjectTableWriter, "add_objects"),
    ("overlay: paint, JPEG", OverlayWriter, "finish"),
    ("labels: deflate", LabelImageWriter, "add_strip"),
    ("labels: TIFF", LabelImageWriter, "finish"),
    ("files in their places", segmentation_writer, "publish"),
)
_REST = "the rest: folders, record, hulls, calls"


class _Timer:
    """CPU time by stage, without the stages inside."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside = [0.0]

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self._inside.append(0.0)
            began = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                took = time.thread_time() - began
                self.seconds[stage] += took - self._inside.pop()
                self._inside[-1] += took

        return call


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argument_parser("benchmarks.output_stages", __doc__)
    parser.add_argument("--lab", type=Path, required=True, help="folder with images/ and masks/ of up to 640²")
    parser.add_argument("--images", type=int, default=24, help="number of images (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="number of runs (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all values to this file")
    chosen = parser.parse_args(arguments)
    file = ResultFile(chosen.json, "benchmarks.output_stages", arguments)
    limits._serving = True  # files are read in this process
    paths = sorted((chosen.lab / "images").iterdir())[: chosen.images]
    runs = [{kind: _run(chosen.lab, paths, kind) for kind in KINDS} for _ in range(chosen.runs + 1)][1:]
    table = _table(runs)
    Console().print(console_table(table, f"core-seconds a megapixel, {len(paths)} images, {chosen.runs} runs"))
    file.write(runs=runs, tables={"stages": table_cells(table)})


def _run(lab: Path, paths: Sequence[Path], kind: str) -> dict[str, float]:
    """Core-seconds a megapixel of each stage."""
    images = [read_image(path) for path in paths]
    engine = precomputed_engine(images, [read_mask(lab / "masks" / f"{path.stem}.png") for path in paths])
    timer, megapixels = _Timer(), sum(image.shape[0] * image.shape[1] for image in images) / 1e6
    with tempfile.TemporaryDirectory() as out, ExitStack() as patches:
        files = ImageFiles(
            Path(out),
            Provenance(model="benchmark"),
            BatchOptions(outputs=KINDS[kind]),
            reference_of(images),
            engine.classes,
            engine.separation(engine.mpp),
            False,
            engine.mpp,
        )
        for stage, place, name in _STAGES:
            patches.enter_context(patch.object(place, name, timer.timed(stage, getattr(place, name))))

        def segment(path: Path) -> None:
            task = ImageTask(path, path.stem)
            image = files.read(task)
            assert isinstance(image, ReadImage)
            files.write(task, image, engine._predict(image.scaled, image.size, False), None)

        for path in paths:
            timer.timed(_REST, segment)(path)
    return {stage: seconds / megapixels for stage, seconds in timer.seconds.items()}


def _table(runs: Sequence[dict[str, dict[str, float]]]) -> pd.DataFrame:
    stages = [stage for stage, _, _ in _STAGES] + [_REST]
    lines = [[stage, *(_cell([run[kind].get(stage) for run in runs]) for kind in KINDS)] for stage in stages]
    sums = [spread([sum(run[kind].get(stage, 0) for stage in stages) for run in runs], 4) for kind in KINDS]
    lines.append(["all", *sums])
    return pd.DataFrame(lines, columns=["stage", *KINDS])


def _cell(values: Sequence[float | None]) -> str:
    return spread([value for value in values if value is not None], 4) if any(values) else ""


if __name__ == "__main__":
    main()
