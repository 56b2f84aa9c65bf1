"""Corrections come back: Dice before and after regions that a pathologist has corrected, on a synthetic lab.

A model is trained on lab_a and adapted to lab_b without labels, and writes outlines of lab_b's images. In some of
them, one region each is corrected as QuPath exports it: a ``Region*`` annotation, the true outlines in it, and the
model's outlines elsewhere. The files are ingested as a new version of lab_b; the adapted model is adapted again, with
the corrections of the split ``train``, and for comparison as long without. Dice is measured on images of other slides.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import shapely

from microseg.annotations.index_masks import read_mask
from microseg.annotations.outlines import OutlineBuilder, mask_polygons
from microseg.api.segmenter import Segmenter
from microseg.api.training import adapt, train
from microseg.config.params import AdaptSettings, NetworkSettings, TrainSettings
from microseg.datasets.dataset import LabDataset, open_lab_dataset
from microseg.datasets.ingest import ingest_lab
from microseg.datasets.lab import read_lab_metadata
from microseg.evaluation.references import held_out_references, mean_scores, score
from microseg.inference.engine import Engine
from microseg.models.files import load_network
from microseg.outputs.objects import label_objects
from microseg.synthetic.labs import LAB_A, LAB_B, generate_lab
from microseg.training.devices import make_fabric

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.corrections",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--regions", type=int, default=5, help="corrected regions, on as many slides (default: 5)")
    parser.add_argument("--steps", type=int, default=200, help="steps of each training (default: 200)")
    parser.add_argument("--size", type=int, default=192, help="side of an image, in pixels (default: 192)")
    parser.add_argument("--images", type=int, default=16, help="images of each lab, two a slide (default: 16)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all measurements to this file")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        result = _run(Path(folder), args)
    print(f"{'model':44}  lab_a  lab_b")
    for name, dice in result["dice"].items():
        print(f"{name:44}  {dice['lab_a']:.3f}  {dice['lab_b']:.3f}")
    print(f"corrected regions by split: {result['regions']}; {result['seconds']:.0f} seconds")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


def _run(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    start = time.monotonic()
    options: dict[str, Any] = {"images": args.images, "size": args.size, "seed": args.seed}
    incoming = {
        "lab_a": generate_lab(folder / "lab_a", LAB_A, labelled=True, test_images=8, **options),
        "lab_b": generate_lab(folder / "lab_b", LAB_B, labelled=False, test_images=8, **options),
    }
    truth = generate_lab(folder / "truth", LAB_B, labelled=True, **options)
    lab_a, lab_b = (_ingest(incoming[lab], folder) for lab in ("lab_a", "lab_b"))
    fabric, crop = make_fabric("cpu"), min(192, args.size)
    fit: dict[str, Any] = {"steps": args.steps, "crop_size": crop}
    common: dict[str, Any] = {"fabric": fabric, "seed": args.seed}
    train([lab_a], NetworkSettings(), TrainSettings(**fit), folder=folder / "first", **common)
    adapt(folder / "first", [lab_a], [lab_b], AdaptSettings(**fit), folder=folder / "adapted", **common)
    _correct(folder, incoming["lab_b"], truth, args.regions)
    lab_b = _ingest(incoming["lab_b"], folder)
    regions = Counter(row.split for row in lab_b.select(labelled=True))
    models = {"first": "first model", "adapted": "adapted without labels"}
    for name, share in (("again", 0.0), ("corrected", AdaptSettings().target_label_share)):
        again = AdaptSettings(**fit, target_label_share=share)
        adapt(folder / "adapted", [lab_a], [lab_b], again, folder=folder / name, **common)
    models |= {"again": "adapted once more, without corrections", "corrected": "adapted once more, with corrections"}
    dice = {title: {lab: _dice(folder / name, incoming[lab]) for lab in incoming} for name, title in models.items()}
    settings = {name: value for name, value in vars(args).items() if name != "json"}
    return {"dice": dice, "regions": dict(regions), "seconds": time.monotonic() - start, "settings": settings}


def _ingest(source: Path, folder: Path) -> LabDataset:
    result = ingest_lab(source, folder / "labs", folder / "quarantine")
    assert not result.rejected, result.rejected
    return open_lab_dataset(result.folder)


def _correct(folder: Path, incoming: Path, truth: Path, count: int) -> None:
    """Let the adapted model outline the first image of some slides, and correct a region of each."""
    images = sorted((incoming / "images").iterdir())[::2][:count]
    Segmenter.load(folder / "adapted", device="cpu").segment_to(images, folder / "outlines", outputs=["outlines"])
    (incoming / "annotations").mkdir()
    for image in images:
        mask = read_mask(truth / "masks" / image.name)
        side = mask.shape[0]
        region = shapely.box(side // 8, side // 8, side - side // 4, side - side // 4)
        written = orjson.loads((folder / "outlines" / f"{image.stem}.geojson").read_bytes())["features"]
        outside = [it for it in written if not region.intersects(shapely.from_geojson(orjson.dumps(it["geometry"])))]
        builder, numbers = OutlineBuilder(), label_objects(mask)
        for number in range(1, int(numbers.max()) + 1):
            inside = numbers == number
            builder.add(LAB_B.classes[int(mask[inside][0])], mask_polygons(inside, 0, 0))
        drawn = builder.build()
        objects = [("Region*", region), *zip(drawn.names, drawn.polygons, strict=True)]
        features = [
            {
                "type": "Feature",
                "geometry": orjson.Fragment(shapely.to_geojson(polygon)),
                "properties": {"objectType": "annotation", "classification": {"name": name, "color": [200, 0, 0]}},
            }
            for name, polygon in objects
            if name == "Region*" or region.intersects(polygon)
        ]
        content = {"type": "FeatureCollection", "features": [*features, *outside]}
        (incoming / "annotations" / f"{image.stem}.geojson").write_bytes(orjson.dumps(content))


def _dice(model: Path, incoming: Path) -> float:
    """Mean Dice on the held-out images of a lab."""
    network = load_network(model)
    engine = Engine(network)
    references = held_out_references(incoming, read_lab_metadata(incoming))
    return float(mean_scores(score(engine.probabilities, references, network.config.classes))["dice"])


if __name__ == "__main__":
    main()
