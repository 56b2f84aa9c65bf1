"""Uses each part of the example package through microseg's public API. Run by `tests/test_plugins.py`."""

import json
import shutil
from pathlib import Path

import numpy as np

from microseg import Segmenter, adapt, train
from microseg.annotations.index_masks import read_mask
from microseg.config.training_params import AdaptSettings, NetworkSettings, TrainSettings
from microseg.datasets.dataset import open_lab_dataset
from microseg.datasets.ingest import ingest_lab
from microseg.outputs.record import Provenance
from microseg.outputs.segmentation import Segmentation
from microseg.slides.readers import open_slide
from microseg.synthetic.labs import LAB_A, LAB_B, generate_lab
from microseg.training.devices import Progress, make_fabric


def test_slide_reader(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    np.save(tmp_path / "slide.npy", pixels)
    with open_slide(tmp_path / "slide.npy") as slide:
        assert np.array_equal(slide.read_region(0, 10, 5, 20, 30), pixels[5:35, 10:30])


def test_annotation_format(tmp_path: Path) -> None:
    """Ingest a lab that has CSV files of rectangles in place of masks."""
    folder = generate_lab(tmp_path / "lab_a", LAB_A, images=4, size=64, test_images=0, labelled=True, seed=0)
    shutil.rmtree(folder / "masks")
    (folder / "annotations").mkdir()
    with (folder / "lab.yaml").open("a") as file:
        file.write("regions: image\n")
    for image in (folder / "images").iterdir():
        (folder / "annotations" / f"{image.stem}.csv").write_text("gland,10,20,30,60\n")
    ingested = ingest_lab(folder, tmp_path / "labs", tmp_path / "quarantine")
    dataset = open_lab_dataset(ingested.folder)
    expected = np.zeros((64, 64), np.uint8)
    expected[20:60, 10:30] = dataset.metadata.classes.index("gland")
    assert len(dataset.rows) == 4
    assert all(np.array_equal(read_mask(dataset.mask_path(row)), expected) for row in dataset.rows)


def test_output_writer(tmp_path: Path) -> None:
    mask = np.zeros((8, 9), np.uint8)
    mask[1:3, 1:3] = mask[5, 5] = 1
    found = Segmentation(mask, None, ("background", "gland"), None, Provenance(model="m"), "field 7")
    files = found.save(tmp_path, ["labels", "class_counts"])
    assert files["class_counts"].name == "field 7.counts.json"
    counts = json.loads(files["class_counts"].read_text())
    assert counts == {"pixels": {"background": 67, "gland": 5}, "objects": {"gland": 2}}


def test_encoder_head_and_adaptation_method(tmp_path: Path) -> None:
    """Train with the encoder and the head, adapt by the method, segment."""
    options = {"images": 4, "size": 64, "test_images": 0}
    source = generate_lab(tmp_path / "lab_a", LAB_A, labelled=True, seed=0, **options)
    target = generate_lab(tmp_path / "lab_b", LAB_B, labelled=False, seed=1, **options)
    labs = [ingest_lab(lab, tmp_path / "labs", tmp_path / "quarantine").folder for lab in (source, target)]
    short = {"steps": 2, "batch_size": 2, "crop_size": 32}
    fabric = make_fabric("cpu")
    network = NetworkSettings(encoder="strided", head="multi_level", weights=None)
    train(labs[:1], network, TrainSettings(**short), folder=tmp_path / "first", fabric=fabric)
    losses: list[set[str]] = []
    adapt(
        tmp_path / "first",
        labs[:1],
        labs[1:],
        AdaptSettings(method="entropy", **short),
        folder=tmp_path / "adapted",
        fabric=fabric,
        progress=Progress(on_step=lambda _step, values: losses.append(set(values))),
    )
    assert losses[0] == {"total", "segmentation", "entropy"}
    found = Segmenter.load(tmp_path / "adapted", device="cpu").segment(np.full((48, 80, 3), 200, np.uint8))
    assert found.mask.shape == (48, 80)
    # and with the reader and the writer: a slide, from its file to the counts
    np.save(tmp_path / "slide.npy", np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8))
    segmenter = Segmenter.load(tmp_path / "adapted", device="cpu")
    assert segmenter.segment_to(tmp_path / "slide.npy", tmp_path / "out", mpp=1.0, outputs=["class_counts"]).done == 1
    counts = json.loads((tmp_path / "out" / "slide.counts.json").read_text())
    assert 0 < sum(counts["pixels"].values()) <= 96 * 128
