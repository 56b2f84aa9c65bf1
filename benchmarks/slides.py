"""A lab of whole slides: time and disk of its ingest, time to the first training step, one more slide delivered later.

The lab is generated: pyramidal slides with 30 % tissue, some of them with annotated regions as GeoJSON. It is ingested
and committed twice, kept and by reference. A larger lab is made of copies of its slides, for the time to the first
training step; then one more slide is delivered to it. With --adapt, a model is adapted to the slides, and to the same
tissue cut into tiles by hand, and both are scored on other tissue of the slides.
"""

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from microseg.annotations.index_masks import read_mask
from microseg.api.samples import image_samples, labelled_samples
from microseg.api.training import adapt, train
from microseg.config.params import AdaptSettings, ArchitectureSettings, NetworkSettings, TrainSettings
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
from microseg.synthetic.labs import LAB_A, LAB_B, generate_lab
from microseg.synthetic.slides import generate_slide, generate_slide_lab, write_pyramid
from microseg.training.devices import make_fabric

__all__ = ["main"]

_TILE = 512  # pixels of a tile that is cut by hand
_MPP = 1.0


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.slides",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--slides", type=int, default=20, help="slides of the lab (default: 20)")
    parser.add_argument("--annotated", type=int, default=5, help="of them with annotated regions (default: 5)")
    parser.add_argument("--side", type=int, default=8000, help="side of a slide, in pixels (default: 8000)")
    parser.add_argument("--links", type=int, default=200, help="slides of the large lab (default: 200)")
    parser.add_argument("--adapt", action="store_true", help="compare adaptation from slides with tiles cut by hand")
    parser.add_argument("--steps", type=int, default=200, help="steps of each training (default: 200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all measurements to this file")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        result = _run(Path(folder), args)
    print(f"{'measurement':58} value")
    for name, value in result["values"].items():
        print(f"{name:58} {value:.4g}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


def _run(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    values: dict[str, float] = {}
    incoming = folder / "incoming"
    masks = generate_slide_lab(
        incoming, LAB_B, slides=args.slides, side=args.side, mpp=_MPP, annotated=args.annotated, seed=args.seed
    )
    size = _bytes(incoming / "images")
    values["slides, MB"] = size / 1e6
    for kind, reference in (("kept", False), ("reference", True)):
        store = DatasetStore(folder / f"home-{kind}", None)
        values[f"ingest, {kind}, s"] = _ingest(incoming, store, reference=reference)
        values[f"commit, {kind}, s"] = _timed(lambda store=store: store.commit(LAB_B.name))
        values[f"home, {kind}, of the slides"] = _bytes(store.root) / size
        values[f"home beyond links to the lab's slides, {kind}"] = _own_bytes(store.root, incoming) / size
    lab = open_lab_dataset(DatasetStore(folder / "home-kept", None).labs / LAB_B.name)
    few = _first_step(lab)
    large = folder / "large"
    values |= {f"first training step, {args.slides} slides, s": few}
    _deliver_many(incoming, large, args.links)
    store = DatasetStore(folder / "home-large", None)
    values[f"ingest of {args.links} slides, s"] = _ingest(large, store, reference=True)
    store.commit(LAB_B.name)
    many = open_lab_dataset(store.labs / LAB_B.name)
    values[f"first training step, {args.links} slides, s"] = _first_step(many)
    one = folder / "one"
    (one / "images").mkdir(parents=True)
    shutil.copy(large / "lab.yaml", one)
    new = generate_slide(LAB_B, args.side, _MPP, 99_999)
    write_pyramid(one / "images" / "new.svs", new.image, _MPP)
    values[f"one more slide to {args.links}, ingest, s"] = _ingest(one, store, reference=True)
    values[f"one more slide to {args.links}, commit, s"] = _timed(lambda: store.commit(LAB_B.name))
    first = DatasetStore(folder / "home-one", None)
    values["the same slide to an empty lab, ingest, s"] = _ingest(one, first, reference=True)
    values["the same slide to an empty lab, commit, s"] = _timed(lambda: first.commit(LAB_B.name))
    if args.adapt:
        values |= _compare_adaptation(folder, lab, masks, args)
    values["peak memory, MB"] = _peak_memory()
    settings = {name: value for name, value in vars(args).items() if name != "json"}
    return {"values": values, "settings": settings}


def _ingest(source: Path, store: DatasetStore, *, reference: bool) -> float:
    start = time.perf_counter()
    result = ingest_lab(source, store.labs, store.root / "quarantine", slides=SlideOptions(reference=reference))
    assert not result.rejected, result.rejected
    return time.perf_counter() - start


def _timed(function: Any) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _bytes(folder: Path) -> int:
    found = {(it.st_dev, it.st_ino): it.st_size for it in (path.stat() for path in folder.rglob("*") if path.is_file())}
    return sum(found.values())


def _own_bytes(home: Path, incoming: Path) -> int:
    """Bytes in a home that are not links to the lab's own files."""
    theirs = {path.stat().st_ino for path in incoming.rglob("*")}
    found = {it.st_ino: it.st_size for it in (path.stat() for path in home.rglob("*") if path.is_file())}
    return sum(size for inode, size in found.items() if inode not in theirs)


def _first_step(lab: LabDataset) -> float:
    """Time from the dataset's folder to the first batches of labelled and of unlabelled crops."""
    start = time.perf_counter()
    opened = open_lab_dataset(lab.folder)
    config = configure_network(ArchitectureSettings(), opened.metadata.classes, _MPP)
    for samples in (labelled_samples([opened], config), image_samples(opened, _MPP, 6.0)):
        CropSampler(samples, size=192, batch=4, seed=0).draw(0)
    return time.perf_counter() - start


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


def _compare_adaptation(folder: Path, lab: LabDataset, masks: Any, args: argparse.Namespace) -> dict[str, float]:
    """Dice on the tissue of all slides, after adaptation from slides and from tiles that were cut by hand."""
    fabric, fit = make_fabric("cpu"), {"steps": args.steps}
    source = generate_lab(folder / "lab_a", LAB_A, images=24, size=256, mpp=_MPP, labelled=True, seed=args.seed)
    labs = folder / "labs"
    lab_a = open_lab_dataset(ingest_lab(source, labs, folder / "quarantine").folder)
    train([lab_a], NetworkSettings(), TrainSettings(**fit), folder=folder / "first", fabric=fabric, seed=args.seed)
    tiles = folder / "tiles"
    (tiles / "images").mkdir(parents=True)
    write_lab_metadata(tiles, LabMetadata(lab="tiles", stain=LAB_B.stain, classes=LAB_B.classes, mpp=_MPP))
    references = []
    for number in range(args.slides):
        made = generate_slide(LAB_B, args.side, _MPP, 1000 * args.seed + number)
        for left, top, right, bottom in made.tissue[::4]:
            name = f"{number:03d}_{left}_{top}"
            write_png(tiles / "images" / f"{name}.png", made.image[top:bottom, left:right])
        left, top, right, bottom = made.tissue[1]  # not among the tiles
        truth = folder / "truth" / f"{number:03d}"
        truth.mkdir(parents=True)
        write_png(truth / "image.png", made.image[top:bottom, left:right])
        write_png(truth / "mask.png", masks[number][top:bottom, left:right])
        references.append(Reference(truth.name, truth / "image.png", truth / "mask.png", _MPP))
    assert read_mask(references[0].mask).shape == (_TILE, _TILE)
    cut = open_lab_dataset(ingest_lab(tiles, labs, folder / "quarantine").folder)
    unlabelled = LabDataset(lab.folder, lab.metadata, tuple(row for row in lab.rows if row.mask is None), lab.slides)
    values = {}
    for name, target in (("slides", unlabelled), ("tiles", cut)):
        values[f"peak memory before adaptation from {name}, MB"] = _peak_memory()
        settings = AdaptSettings(**fit)
        adapt(folder / "first", [lab_a], [target], settings, folder=folder / name, fabric=fabric, seed=args.seed)
        values[f"peak memory after adaptation from {name}, MB"] = _peak_memory()
        network = load_network(folder / name)
        table = score(Engine(network).probabilities, references, network.config.classes)
        values[f"Dice, adapted from {name}"] = float(mean_scores(table)["dice"])
    table = score(Engine(load_network(folder / "first")).probabilities, references, LAB_B.classes)
    return {"Dice, not adapted": float(mean_scores(table)["dice"]), **values}


if __name__ == "__main__":
    main()
