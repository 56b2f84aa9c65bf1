"""Corrections come back: Dice before and after regions that a pathologist has corrected, on a synthetic lab.

A model is trained on lab_a and adapted to lab_b without labels, and writes outlines of lab_b's images. In some of
them, one region each is corrected as QuPath exports it: a ``Region*`` annotation, the true outlines in it, and the
model's outlines elsewhere. The files are ingested as a new version of lab_b; the adapted model is adapted again, with
the corrections of the split ``train``, and for comparison as long without. Dice is measured on images of other slides.
With ``--slides`` lab_b consists of whole slides.
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import shapely

from benchmarks.results import ResultFile, argument_parser
from microseg.annotations.index_masks import read_mask
from microseg.annotations.outlines import OutlineBuilder, mask_polygons
from microseg.api.segmenter import Segmenter
from microseg.api.training import adapt, train
from microseg.config.training_params import AdaptSettings, NetworkSettings, TrainSettings
from microseg.datasets.dataset import LabDataset, open_lab_dataset
from microseg.datasets.ingest import ingest_lab
from microseg.datasets.lab import read_lab_metadata
from microseg.evaluation.references import held_out_references, mean_scores, score
from microseg.inference.engine import Engine
from microseg.models.files import load_network
from microseg.outputs.objects import label_objects
from microseg.slides.images import write_png
from microseg.synthetic.labs import LAB_A, LAB_B, generate_lab
from microseg.synthetic.slides import generate_slide_lab
from microseg.training.devices import make_fabric

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    parser = argument_parser("benchmarks.corrections", __doc__)
    parser.add_argument("--regions", type=int, default=5, help="corrected regions, on as many slides (default: 5)")
    parser.add_argument("--steps", type=int, default=200, help="steps of each training (default: 200)")
    parser.add_argument("--size", type=int, default=192, help="side of an image, in pixels (default: 192)")
    parser.add_argument("--images", type=int, default=16, help="images of each lab, two a slide (default: 16)")
    parser.add_argument(
        "--slides", action="store_true", help="lab_b as slides, one for two images of four times the side"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all measurements to this file")
    args = parser.parse_args(arguments)
    file = ResultFile(args.json, "benchmarks.corrections", arguments)
    with tempfile.TemporaryDirectory() as folder:
        result = _run(Path(folder), args)
    print(f"{'model':44}  lab_a  lab_b")
    for name, dice in result["dice"].items():
        print(f"{name:44}  {dice['lab_a']:.3f}  {dice['lab_b']:.3f}")
    print(f"corrected regions by split: {result['regions']}; {result['seconds']:.0f} seconds")
    rows = [[name, *(f"{value:.3f}" for value in dice.values())] for name, dice in result["dice"].items()]
    file.write(**result, tables={"corrections": {"columns": ["model", "lab_a", "lab_b"], "rows": rows}})


def _run(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    start = time.monotonic()
    options: dict[str, Any] = {"images": args.images, "size": args.size, "seed": args.seed}
    held_out = {
        "lab_a": generate_lab(folder / "lab_a", LAB_A, labelled=True, test_images=8, **options),
        "lab_b": generate_lab(folder / "lab_b", LAB_B, labelled=False, test_images=8, **options),
    }
    incoming, masks = held_out["lab_b"], folder / "truth" / "masks"
    if args.slides:
        incoming = folder / "slides"
        made = generate_slide_lab(
            incoming, LAB_B, slides=args.images // 2, side=4 * args.size, block=args.size, seed=args.seed
        )
        masks.mkdir(parents=True)
        for path, mask in zip(sorted((incoming / "images").iterdir()), made, strict=True):
            write_png(masks / f"{path.stem}.png", mask)
    else:
        generate_lab(masks.parent, LAB_B, labelled=True, **options)
    lab_a, lab_b = (_ingest(it, folder) for it in (held_out["lab_a"], incoming))
    fabric, crop = make_fabric("cpu"), min(192, args.size)
    fit: dict[str, Any] = {"steps": args.steps, "crop_size": crop}
    common: dict[str, Any] = {"fabric": fabric, "seed": args.seed}
    train([lab_a], NetworkSettings(), TrainSettings(**fit), folder=folder / "first", **common)
    adapt(folder / "first", [lab_a], [lab_b], AdaptSettings(**fit), folder=folder / "adapted", **common)
    images = sorted((incoming / "images").iterdir())[:: 1 if args.slides else 2][: args.regions]
    _correct(folder, images, masks, args.size)
    lab_b = _ingest(incoming, folder)
    regions = Counter(row.split for row in lab_b.select(labelled=True))
    models = {"first": "first model", "adapted": "adapted without labels"}
    for name, share in (("again", 0.0), ("corrected", AdaptSettings().target_label_share)):
        again = AdaptSettings(**fit, target_label_share=share)
        adapt(folder / "adapted", [lab_a], [lab_b], again, folder=folder / name, **common)
    models |= {"again": "adapted once more, without corrections", "corrected": "adapted once more, with corrections"}
    dice = {title: {lab: _dice(folder / name, held_out[lab]) for lab in held_out} for name, title in models.items()}
    settings = {name: value for name, value in vars(args).items() if name != "json"}
    return {"dice": dice, "regions": dict(regions), "seconds": time.monotonic() - start, "settings": settings}


def _ingest(source: Path, folder: Path) -> LabDataset:
    result = ingest_lab(source, folder / "labs", folder / "quarantine")
    assert not result.rejected, result.rejected
    return open_lab_dataset(result.folder)


def _correct(folder: Path, images: Sequence[Path], masks: Path, side: int) -> None:
    """Let the adapted model outline images or slides, and correct a region of each."""
    Segmenter.load(folder / "adapted", device="cpu").segment_to(images, folder / "outlines", outputs=["outlines"])
    annotations = images[0].parent.parent / "annotations"
    annotations.mkdir(exist_ok=True)
    for image in images:
        mask = read_mask(masks / f"{image.stem}.png")
        blocks = [(left, top) for top in range(0, len(mask), side) for left in range(0, mask.shape[1], side)]
        left, top = max(blocks, key=lambda at: np.count_nonzero(mask[at[1] : at[1] + side, at[0] : at[0] + side]))
        block = mask[top : top + side, left : left + side]
        region = shapely.box(*(side // 8 + it for it in (left, top)), *(side - side // 4 + it for it in (left, top)))
        written = orjson.loads((folder / "outlines" / f"{image.stem}.geojson").read_bytes())["features"]
        outside = [it for it in written if not region.intersects(shapely.from_geojson(orjson.dumps(it["geometry"])))]
        builder, numbers = OutlineBuilder(), label_objects(block)
        for number in range(1, int(numbers.max()) + 1):
            inside = numbers == number
            builder.add(LAB_B.classes[int(block[inside][0])], mask_polygons(inside, left, top))
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
        (annotations / f"{image.stem}.geojson").write_bytes(orjson.dumps(content))


def _dice(model: Path, incoming: Path) -> float:
    """Mean Dice on the held-out images of a lab."""
    network = load_network(model)
    engine = Engine(network)
    references = held_out_references(incoming, read_lab_metadata(incoming))
    return float(mean_scores(score(engine.probabilities, references, network.config.classes))["dice"])


if __name__ == "__main__":
    main()
