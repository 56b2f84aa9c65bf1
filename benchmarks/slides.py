"""A lab of whole slides: time and disk of its ingest, time to the first training step, one more slide delivered later.

Times are processor seconds of the process and its children, so that other load on the machine counts little.

The lab is generated: pyramidal slides with 30 % tissue, some of them with annotated regions as GeoJSON. It is ingested
and committed twice, kept and by reference. A larger lab is made of copies of its slides, for the time to the first
training step; then one more slide is added to it. The part "adaptation": a model is adapted to the slides, and to their
tissue cut into tiles by hand, each in a process of its own, and both are scored on tissue of other slides.
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import cpu_seconds, tree_memory
from benchmarks.results import ResultFile, argument_parser
from microseg.api.samples import image_samples, labelled_samples
from microseg.api.training import adapt, train
from microseg.config.training_params import AdaptSettings, ArchitectureSettings, TrainSettings
from microseg.datasets.dataset import LabDataset, open_lab_dataset
from microseg.datasets.ingest import ingest_lab
from microseg.datasets.lab import LabMetadata, write_lab_metadata
from microseg.datasets.sampling import CropSampler
from microseg.datasets.slide_update import SlideOptions
from microseg.datasets.versions.store import DatasetStore
from microseg.evaluation.references import Reference, mean_scores, score
from microseg.inference.engine import Engine
from microseg.models.files import load_network
from microseg.models.network import configure_network
from microseg.slides.images import write_png
from microseg.slides.readers import open_slide
from microseg.slides.tissue import find_tissue
from microseg.synthetic.labs import LAB_A, LAB_B, generate_image, generate_lab
from microseg.synthetic.slides import generate_slide, generate_slide_lab, write_pyramid
from microseg.training.devices import make_fabric

__all__ = ["main"]

_PARTS = ("ingest", "adaptation")
_MPP = 1.0
_TILE, _EVERY = 512, 8  # side of the tiles that are cut out, and how many tiles of tissue one is taken of
_LATER = 3  # slides that are delivered later, of whose times the median is stated
_REFERENCES = 16  # images, of as many slides, that models are scored on


def main(arguments: list[str] | None = None) -> None:
    parser = argument_parser("benchmarks.slides", __doc__)
    parser.add_argument("--slides", type=int, default=20, help="slides of the lab (default: 20)")
    parser.add_argument("--annotated", type=int, default=5, help="of them with annotated regions (default: 5)")
    parser.add_argument("--side", type=int, default=8000, help="side of a slide, in pixels (default: 8000)")
    parser.add_argument("--links", type=int, default=200, help="slides of the large lab (default: 200)")
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS, help="what to measure (default: all)")
    parser.add_argument("--steps", type=int, default=200, help="steps of each training (default: 200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all measurements to this file")
    args = parser.parse_args(arguments)
    file = ResultFile(args.json, "benchmarks.slides", arguments)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        result = _run(Path(folder), args)
    print(f"{'measurement':58} value")
    for name, value in result["values"].items():
        print(f"{name:58} {value:.4g}")
    rows = [[name, f"{value:.4g}"] for name, value in result["values"].items()]
    file.write(**result, tables={"slides": {"columns": ["measurement", "value"], "rows": rows}})


def _run(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    incoming = folder / "incoming"
    generate_slide_lab(
        incoming, LAB_B, slides=args.slides, side=args.side, mpp=_MPP, annotated=args.annotated, seed=args.seed
    )
    values: dict[str, float] = {}
    if "ingest" in args.parts:
        values |= _measure_ingest(folder, incoming, args)
    if "adaptation" in args.parts:
        values |= _compare_adaptation(folder, incoming, args)
    settings = {name: value for name, value in vars(args).items() if name != "json"}
    return {"values": values, "settings": settings}


def _measure_ingest(folder: Path, incoming: Path, args: argparse.Namespace) -> dict[str, float]:
    """Time and disk of ingest, time to the first training step, and one more slide for a large lab."""
    size = _bytes(incoming / "images")
    values = {"slides, MB": size / 1e6}
    for kind, reference in (("kept", False), ("reference", True)):
        store = DatasetStore(folder / f"home-{kind}", None)
        values[f"ingest, {kind}, CPU s"] = _ingest(incoming, store, reference=reference)
        values[f"commit, {kind}, CPU s"] = _seconds(lambda store=store: store.commit(LAB_B.name))
        values[f"home, {kind}, of the slides"] = _bytes(store.root) / size
        values[f"home beyond links to the lab's slides, {kind}"] = _own_bytes(store.root, incoming) / size
    kept, referenced = (DatasetStore(folder / f"home-{kind}", None).labs / LAB_B.name for kind in ("kept", "reference"))
    _first_step(referenced, args.slides)  # imports what is needed
    values |= _first_step(kept, args.slides)
    large = folder / "large"
    _deliver_many(incoming, large, args.links)
    many = DatasetStore(folder / "home-large", None)
    values[f"ingest of {args.links} slides, CPU s"] = _ingest(large, many, reference=True)
    many.commit(LAB_B.name)
    values |= _first_step(many.labs / LAB_B.name, args.links)
    later: dict[str, list[float]] = {}
    for number in range(_LATER):
        one = folder / f"one-{number}"
        (one / "images").mkdir(parents=True)
        shutil.copy(large / "lab.yaml", one)
        new = generate_slide(LAB_B, args.side, _MPP, 99_999 + number)
        write_pyramid(one / "images" / f"new-{number}.svs", new.image, _MPP)
        empty = DatasetStore(folder / f"home-one-{number}", None)
        for name, store in ((f"one more slide to {args.links}", many), ("the same slide to an empty lab", empty)):
            later.setdefault(f"{name}, ingest, CPU s", []).append(_ingest(one, store, reference=True))
            commit = _seconds(lambda store=store: store.commit(LAB_B.name))
            later.setdefault(f"{name}, commit, CPU s", []).append(commit)
    return values | {name: statistics.median(found) for name, found in later.items()}


def _ingest(source: Path, store: DatasetStore, *, reference: bool) -> float:
    def ingest() -> None:
        result = ingest_lab(source, store.labs, store.root / "quarantine", slides=SlideOptions(reference=reference))
        assert not result.rejected, result.rejected

    return _seconds(ingest)


def _seconds(function: Any) -> float:
    """Processor time of a function."""
    before = cpu_seconds()
    function()
    return cpu_seconds() - before


def _bytes(folder: Path) -> int:
    found = {(it.st_dev, it.st_ino): it.st_size for it in (path.stat() for path in folder.rglob("*") if path.is_file())}
    return sum(found.values())


def _own_bytes(home: Path, incoming: Path) -> int:
    """Bytes in a home that are not links to the lab's own files."""
    theirs = {path.stat().st_ino for path in incoming.rglob("*")}
    found = {it.st_ino: it.st_size for it in (path.stat() for path in home.rglob("*") if path.is_file())}
    return sum(size for inode, size in found.items() if inode not in theirs)


def _first_step(folder: Path, slides: int) -> dict[str, float]:
    """Time from the dataset's folder to the first batches of labelled and of unlabelled crops."""
    before = cpu_seconds()
    opened = open_lab_dataset(folder)
    middle = cpu_seconds()
    config = configure_network(ArchitectureSettings(), opened.metadata.classes, _MPP)
    for samples in (labelled_samples([opened], config), image_samples(opened, _MPP, 6.0)):
        CropSampler(samples, size=192, batch=4, seed=0).draw(0)
    return {
        f"dataset of {slides} slides opened, CPU s": middle - before,
        f"first batches of {slides} slides, CPU s": cpu_seconds() - middle,
    }


def _deliver_many(incoming: Path, large: Path, count: int) -> None:
    """A lab of many slides; each is a link to one of few with another last byte, so that no two are the same."""
    for part in ("images", "annotations"):
        (large / part).mkdir(parents=True)
    shutil.copy(incoming / "lab.yaml", large)
    slides = sorted((incoming / "images").iterdir())
    for number in range(count):
        slide = slides[number % len(slides)]
        target = large / "images" / f"{slide.stem}_{number:03d}.svs"
        shutil.copy(slide, target)
        with target.open("ab") as file:
            file.write(number.to_bytes(4, "big"))
        outlines = incoming / "annotations" / f"{slide.stem}.geojson"
        if outlines.is_file():
            shutil.copy(outlines, large / "annotations" / f"{target.stem}.geojson")


def _compare_adaptation(folder: Path, incoming: Path, args: argparse.Namespace) -> dict[str, float]:
    """Dice on other slides after adaptation from slides and from tiles that were cut out of their tissue by hand."""
    source = generate_lab(folder / "lab_a", LAB_A, images=24, size=256, mpp=_MPP, labelled=True, seed=args.seed)
    labs = folder / "labs"
    lab_a, lab = (open_lab_dataset(ingest_lab(it, labs, folder / "quarantine").folder) for it in (source, incoming))
    cut = _cut_tiles(folder / "tiles", incoming / "images", labs)
    references = _references(folder / "truth", args.seed)
    unlabelled = LabDataset(lab.folder, lab.metadata, tuple(row for row in lab.rows if row.mask is None), lab.slides)
    values = {}
    train_settings, adapt_settings = TrainSettings(steps=args.steps), AdaptSettings(steps=args.steps)
    first = folder / "first"
    train([lab_a], None, train_settings, folder=first, fabric=make_fabric("cpu"), seed=args.seed)
    values["Dice, not adapted"] = _dice(first, references)
    print(f"Not adapted: Dice {values['Dice, not adapted']:.3f}", file=sys.stderr)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        for name, target in (("slides", unlabelled), ("tiles", cut)):
            start = time.perf_counter()
            peak = processes.submit(_adapt, first, lab_a, target, adapt_settings, folder / name, args.seed).result()
            values[f"adaptation from {name}, s"] = time.perf_counter() - start
            values[f"peak memory of adaptation from {name}, MB"] = peak
            values[f"Dice, adapted from {name}"] = _dice(folder / name, references)
            print(f"Adapted from {name}: Dice {values[f'Dice, adapted from {name}']:.3f}", file=sys.stderr)
    return values


def _cut_tiles(folder: Path, slides: Path, labs: Path) -> LabDataset:
    """A lab of tiles that were cut out of the slides' tissue."""
    (folder / "images").mkdir(parents=True)
    write_lab_metadata(folder, LabMetadata(lab="tiles", stain=LAB_B.stain, classes=LAB_B.classes, mpp=_MPP))
    for path in sorted(slides.iterdir()):
        with open_slide(path) as slide:
            shows = find_tissue(slide)
            across, down = slide.width // _TILE, slide.height // _TILE
            places = [
                (x * _TILE, y * _TILE)
                for y in range(down)
                for x in range(across)
                if shows.touches((x + 0.4) / across, (y + 0.4) / down, (x + 0.6) / across, (y + 0.6) / down)
            ]
            for x, y in places[::_EVERY]:
                write_png(folder / "images" / f"{path.stem}_{x}_{y}.png", slide.read_region(0, x, y, _TILE, _TILE))
    return open_lab_dataset(ingest_lab(folder, labs, folder / "quarantine").folder)


def _references(folder: Path, seed: int) -> list[Reference]:
    """Tissue of slides that are not in the lab."""
    references = []
    for number in range(_REFERENCES):
        own = LAB_B.vary(np.random.default_rng((1000 * seed + 500 + number, 11)))
        image, mask = generate_image(own, _TILE, _MPP, (seed, 500, number))
        truth = folder / f"{number:03d}"
        truth.mkdir(parents=True)
        write_png(truth / "image.png", image)
        write_png(truth / "mask.png", mask)
        references.append(Reference(truth.name, truth / "image.png", truth / "mask.png", _MPP))
    return references


def _adapt(
    first: Path, source: LabDataset, target: LabDataset, settings: AdaptSettings, folder: Path, seed: int
) -> float:
    """Adapt in a process of its own; returns the largest memory of it and its readers, in MB."""
    with tree_memory() as peak:
        adapt(first, [source], [target], settings, folder=folder, fabric=make_fabric("cpu"), seed=seed)
    return peak[0]


def _dice(model: Path, references: list[Reference]) -> float:
    network = load_network(model)
    return float(mean_scores(score(Engine(network).probabilities, references, network.config.classes))["dice"])


if __name__ == "__main__":
    main()
