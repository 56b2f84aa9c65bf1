"""Instances from ingest to outputs: trained, adapted without labels, and the same in an image and in a slide."""

import copy
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import tifffile
import torch
import yaml
from PIL import Image

from microseg.annotations.instance_masks import read_instances, write_instances
from microseg.api.segmenter import Segmenter
from microseg.api.training import adapt, train
from microseg.config.training_params import AdaptSettings, TrainSettings
from microseg.datasets.dataset import LabDataset, open_lab_dataset
from microseg.datasets.ingest import ingest_lab
from microseg.errors import LabError
from microseg.evaluation.comparison import compare
from microseg.evaluation.references import lab_references, mean_scores, score
from microseg.inference.image_files import BatchOptions
from microseg.models.files import load_network
from microseg.outputs.segmentation import Segmentation
from microseg.slides.images import write_png
from microseg.training.devices import make_fabric
from tests.microseg.api.conftest import TINY

SHORT = {"steps": 3, "batch_size": 2, "crop_size": 64, "warmup_steps": 1, "evaluate_every": 2, "ema_decay": 0.5}


def touching_discs(seed: int, side: int = 96) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
    """An image of dark discs in touching pairs, and their numbers."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    numbers = np.zeros((side, side), np.uint16)
    for top in range(16, side - 8, 32):
        for left in range(12, side - 24, 36):
            for center in (left, left + 13):
                inside = np.hypot(y - top, x - center) < 7
                numbers[inside & (numbers == 0)] = numbers.max() + 1
    image = np.where(numbers > 0, 90, 220)[..., None] + rng.normal(0, 6, (side, side, 3))
    return image.clip(0, 255).astype(np.uint8), numbers


def incoming_lab(folder: Path, name: str, *, labelled: bool, images: int = 4) -> Path:
    for number in range(images):
        image, numbers = touching_discs(number)
        arrays = {"images": image + np.uint8(0 if labelled else 9)}
        if labelled:
            arrays |= {"masks": (numbers > 0).astype(np.uint8), "instances": numbers}
        for part, array in arrays.items():
            (folder / part).mkdir(parents=True, exist_ok=True)
            (write_instances if part == "instances" else write_png)(folder / part / f"{number}.png", array)
    card = {"lab": name, "stain": "H&E", "classes": ["background", "nucleus"], "mpp": 0.5, "labelled": labelled}
    (folder / "lab.yaml").write_text(yaml.safe_dump(card | ({"instances": ["nucleus"]} if labelled else {})))
    return folder


@pytest.fixture(scope="module")
def labs(tmp_path_factory: pytest.TempPathFactory) -> tuple[LabDataset, LabDataset]:
    home = tmp_path_factory.mktemp("labs")
    for name, labelled in (("a", True), ("b", False)):
        ingest_lab(incoming_lab(home / "incoming" / name, name, labelled=labelled), home / "data", home / "quarantine")
    source, target = (open_lab_dataset(home / "data" / name) for name in "ab")
    return source, target


@pytest.fixture(scope="module")
def trained(labs: tuple[LabDataset, LabDataset], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("network") / "trained"
    train(labs[:1], TINY, TrainSettings(**SHORT), folder=folder, fabric=make_fabric("cpu"))  # type: ignore[arg-type]
    return folder


def test_dataset_keeps_the_numbered_objects(labs: tuple[LabDataset, LabDataset]) -> None:
    source, target = labs
    for row in source.rows:
        path = source.instances_path(row)
        assert path is not None
        np.testing.assert_array_equal(read_instances(path), touching_discs(int(Path(row.image).stem))[1])
        with Image.open(path) as image:
            assert image.mode == "I;16"
    assert all(target.instances_path(row) is None for row in target.rows)


def test_training_with_corrected_objects_does_not_resume_the_one_before(
    labs: tuple[LabDataset, LabDataset], tmp_path: Path
) -> None:
    """Also where the mask is the same: two touching objects are one, or two."""

    def run(source: LabDataset) -> Path:
        settings = TrainSettings(**SHORT)  # type: ignore[arg-type]
        train([source], TINY, settings, folder=tmp_path / "n", fabric=make_fabric("cpu"), keep_checkpoint=True)
        (checkpoint,) = tmp_path.glob("n.*.checkpoint")
        return checkpoint

    before = run(labs[0])
    assert run(labs[0]) == before
    shutil.copytree(labs[0].folder, tmp_path / "corrected")
    corrected = open_lab_dataset(tmp_path / "corrected")
    path = corrected.instances_path(corrected.rows[0])
    assert path is not None
    numbers = read_instances(path)
    path.unlink()
    write_instances(path, np.minimum(numbers, 1))
    assert run(corrected) != before


def test_classes_of_the_lab_are_separated(trained: Path) -> None:
    config = load_network(trained).config
    assert (config.instances, config.head_in_use) == (("nucleus",), "instance")
    assert config.smallest_instance == pytest.approx(0.5 * 7**2 * np.pi, rel=0.2)


def test_training_for_instances_needs_their_labels(labs: tuple[LabDataset, LabDataset], tmp_path: Path) -> None:
    network = TINY.model_copy(update={"instances": ("nucleus",)})
    with pytest.raises(LabError, match="Expected instance labels of nucleus"):
        train(labs[1:], network, TrainSettings(**SHORT), folder=tmp_path / "a")  # type: ignore[arg-type]


@pytest.mark.parametrize("source", ["labelled", "none"])
def test_adaptation_trains_the_instances_on_their_pseudo_labels(
    labs: tuple[LabDataset, LabDataset], trained: Path, tmp_path: Path, source: str
) -> None:
    before = load_network(trained)
    network = copy.deepcopy(before)
    with torch.no_grad():
        network.head.classify.bias[1] += 9  # type: ignore[union-attr, index, operator]
    settings = AdaptSettings(**SHORT | {"source": source, "lambda_image": 0, "lambda_feature": 0})  # type: ignore[arg-type]
    chosen = labs[:1] if source == "labelled" else []
    adapt(network, chosen, labs[1:], settings, folder=tmp_path / "adapted", fabric=make_fabric("cpu"))
    after = load_network(tmp_path / "adapted")
    assert after.config == before.config
    assert not torch.equal(after.head.interior_logit.weight, network.head.interior_logit.weight)  # type: ignore[union-attr, arg-type]


def test_objects_of_a_slide_are_those_of_the_image(trained: Path, tmp_path: Path) -> None:
    """The same pixels as an image in memory and as a slide in strips, with all outputs."""
    image = np.tile(touching_discs(0)[0], (3, 2, 1))
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", tile=(64, 64))
    options = {"tile": 128, "halo": 8}
    segmenter = Segmenter.load(trained, device="cpu", **options)  # type: ignore[arg-type]
    segmenter.engine.mpp = None  # of the file nothing is known
    found = segmenter.segment(image)
    assert found.instances is not None
    assert found.instances.max() == len(found.objects)
    outputs = ["labels", "outlines", "objects"]
    found.save(tmp_path / "image", outputs, name="a")
    from microseg.inference.slide import segment_slide

    record = segment_slide(
        segmenter.engine,
        tmp_path / "a.tif",
        tmp_path / "slide",
        provenance=segmenter.provenance,
        options=BatchOptions(outputs=outputs),
    )
    assert sorted(record.outputs) == ["instances", "labels", "objects", "outlines"]
    for suffix in (".labels.tif", ".instances.tif"):
        ours, theirs = (tifffile.imread(tmp_path / kind / f"a{suffix}") for kind in ("image", "slide"))
        np.testing.assert_array_equal(ours, theirs)
    assert tifffile.imread(tmp_path / "slide" / "a.instances.tif").dtype == np.uint16
    tables = [pd.read_csv(tmp_path / kind / "a.objects.csv") for kind in ("image", "slide")]
    columns = [name for name in tables[0] if name not in ("image", "mean_probability") and "perimeter" not in name]
    pd.testing.assert_frame_equal(tables[0][columns], tables[1][columns], atol=1e-3)
    loaded = Segmentation.load(tmp_path / "slide" / "a.json")
    assert loaded.instances is not None
    np.testing.assert_array_equal(loaded.instances, found.instances)
    assert loaded.objects["area_px"].tolist() == found.objects["area_px"].tolist()


def test_evaluation_uses_numbered_objects(labs: tuple[LabDataset, LabDataset], trained: Path) -> None:
    """Of a perfect mask the connected regions are half of the objects: F1 is 0, the count error 1/2."""
    references = lab_references(labs[0], "train")
    masks = iter([read_instances(it.instances) for it in references if it.instances] * 2)

    def perfect(_image: npt.NDArray[np.uint8], _mpp: float | None) -> npt.NDArray[np.float32]:
        numbers = next(masks)
        return np.stack([numbers == 0, numbers > 0, numbers]).astype(np.float32)

    regions = mean_scores(score(perfect, references, ("background", "nucleus"), objects=True))
    assert regions["dice"] == 1
    assert regions["count_error"] == pytest.approx(0.5)
    objects = mean_scores(
        score(
            perfect,
            references,
            ("background", "nucleus"),
            objects=True,
            label=lambda outputs, _mpp: outputs[2].astype(np.int32),
        )
    )
    assert [objects[name] for name in ("f1_at_50", "mean_f1", "panoptic_quality", "aji", "count_error")] == [1] * 4 + [
        0
    ]
    assert load_network(trained).config.classes == ("background", "nucleus")


def test_gate_sees_the_object_f1_of_labs_with_numbered_objects(
    labs: tuple[LabDataset, LabDataset], trained: Path
) -> None:
    comparison = compare(load_network(trained), None, source=labs[:1], target=None)
    (lab,) = comparison.scores
    known = lab_references(labs[0], "test")
    assert comparison.candidate.source_f1 == ({lab: comparison.scores[lab]["f1_at_50"][0]} if known else {})
    assert known
