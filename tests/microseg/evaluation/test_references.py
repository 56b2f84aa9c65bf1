import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from microseg.annotations.index_masks import read_mask
from microseg.datasets.dataset import LabDataset
from microseg.datasets.lab import LabMetadata
from microseg.errors import LabError
from microseg.evaluation.references import (
    Reference,
    bootstrap_interval,
    held_out_references,
    lab_references,
    mean_scores,
    score,
)
from microseg.slides.channels import Channel
from microseg.slides.images import image_digest, read_image, write_png

CLASSES = ("background", "gland", "lumen")


def card(mpp: float | None = None) -> LabMetadata:
    return LabMetadata(lab="lab_b", stain="DAB-H", classes=CLASSES[:2], mpp=mpp)


def one_hot(mask: npt.NDArray[np.uint8], classes: int = 3) -> npt.NDArray[np.float32]:
    return (mask == np.arange(classes)[:, None, None]).astype(np.float32)


@pytest.fixture
def two_images(tmp_path: Path) -> tuple[list[Reference], Callable[..., Any]]:
    """Two uniform images with masks, and an engine that returns a prepared mask for each."""
    truths = [[[1, 1, 0, 0], [2, 255, 255, 0]], [[0, 0, 0, 0], [1, 1, 1, 1]]]
    predictions = [[[1, 0, 0, 0], [2, 2, 2, 0]], [[0, 0, 0, 0], [1, 1, 1, 0]]]
    references = []
    for number, truth in enumerate(truths):
        image, mask = tmp_path / f"{number}.png", tmp_path / f"{number}-mask.png"
        write_png(image, np.full((2, 4, 3), number, np.uint8))
        write_png(mask, np.array(truth, np.uint8))
        references.append(Reference(f"image {number}", image, mask, 0.25 * (number + 1)))

    def segment(image: npt.NDArray[np.uint8], mpp: float | None) -> npt.NDArray[np.float32]:
        number = int(image[0, 0, 0])
        assert mpp == 0.25 * (number + 1)
        return one_hot(np.array(predictions[number], np.uint8))

    return references, segment


def test_scores_by_hand(two_images: tuple[list[Reference], Any]) -> None:
    references, segment = two_images
    names: list[str] = []
    table = score(segment, references, CLASSES, names.append)
    assert list(table.columns) == ["image", "dice", "boundary_dice", "dice_gland", "dice_lumen"]
    assert list(table["image"]) == names == ["image 0", "image 1"]
    # image 0: gland 2·1 / (1 + 2); lumen 2·1 / (1 + 1), the ignored pixels left out. image 1: gland 2·3 / (3 + 4)
    np.testing.assert_allclose(table["dice_gland"], [2 / 3, 6 / 7])
    np.testing.assert_allclose(table["dice_lumen"], [1.0, np.nan])
    np.testing.assert_allclose(table["dice"], [(2 / 3 + 1) / 2, 6 / 7])
    np.testing.assert_allclose(table["boundary_dice"], [1.0, 1.0])  # no boundary is 2 px off


def test_object_metrics_by_hand(two_images: tuple[list[Reference], Any]) -> None:
    """Image 0: a gland of 2 px with 1 px found, a lumen without its ignored pixels; image 1: a gland, 3 of 4 px."""
    references, segment = two_images
    table = score(segment, references, CLASSES, objects=True)
    np.testing.assert_allclose(table["object_f1_gland"], [1, 1])
    np.testing.assert_allclose(table["object_dice_gland"], [2 / 3, 6 / 7])
    np.testing.assert_allclose(table["aji_gland"], [1 / 2, 3 / 4])
    np.testing.assert_allclose(table["f1_at_50_gland"], [0, 1])  # an IoU of 1/2 does not match
    np.testing.assert_allclose(table["panoptic_quality_gland"], [0, 3 / 4])
    np.testing.assert_allclose(table["mean_f1_gland"], [0, 5 / 10])  # 0.75 is above 0.5, 0.55 … 0.7
    for metric in ("object_f1", "object_dice", "aji", "f1_at_50", "mean_f1", "panoptic_quality"):
        np.testing.assert_allclose(table[f"{metric}_lumen"], [1, np.nan])
    np.testing.assert_allclose(table["aji"], [3 / 4, 3 / 4])
    assert mean_scores(table)["aji"] == pytest.approx((5 / 8 + 1) / 2)


def test_edge_of_ignored_pixels_is_no_boundary(tmp_path: Path) -> None:
    """The left half is a gland, the right half is ignored; all of it is found."""
    truth = np.ones((12, 12), np.uint8)
    truth[:, 6:] = 255
    write_png(tmp_path / "image.png", np.zeros((12, 12, 3), np.uint8))
    write_png(tmp_path / "mask.png", truth)
    reference = Reference("a", tmp_path / "image.png", tmp_path / "mask.png", None)
    table = score(lambda _image, _mpp: one_hot(np.ones((12, 12), np.uint8), 2), [reference], CLASSES[:2])
    assert (table["dice"][0], table["boundary_dice"][0]) == (1, 1)


def test_means_over_images_are_taken_before_those_over_classes(two_images: tuple[list[Reference], Any]) -> None:
    references, segment = two_images
    means = mean_scores(score(segment, references, CLASSES))
    assert means["dice_gland"] == pytest.approx((2 / 3 + 6 / 7) / 2)
    assert means["dice_lumen"] == 1
    assert means["dice"] == pytest.approx(((2 / 3 + 6 / 7) / 2 + 1) / 2)


def test_image_without_a_class_affects_other_classes_only() -> None:
    table = pd.DataFrame(
        {
            "image": ["a", "b"],
            "dice": [1.0, 0.3],
            "boundary_dice": [1.0, np.nan],
            "dice_gland": [1.0, 0.5],
            "dice_lumen": [np.nan, 0.1],
        }
    )
    assert mean_scores(table) == pytest.approx(
        {"dice": (0.75 + 0.1) / 2, "boundary_dice": 1.0, "dice_gland": 0.75, "dice_lumen": 0.1}
    )


def test_scores_of_no_images_are_nan() -> None:
    means = mean_scores(score(lambda _image, _mpp: one_hot(np.zeros((2, 2), np.uint8)), [], CLASSES))
    assert means.keys() == {"dice", "boundary_dice", "dice_gland", "dice_lumen"}
    assert np.isnan(list(means.values())).all()


def test_bootstrap_interval() -> None:
    values = np.random.default_rng(0).normal(0.8, 0.1, 40)
    interval = bootstrap_interval(values)
    assert interval.value == pytest.approx(values.mean())
    error = values.std(ddof=1) / np.sqrt(40)
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)
    assert bootstrap_interval(values) == interval
    assert bootstrap_interval(np.append(values, np.nan)) == interval
    narrow = bootstrap_interval(values, share=0.5)
    assert interval.low < narrow.low < narrow.value < narrow.high < interval.high


def test_bootstrap_interval_covers_the_true_mean() -> None:
    rng = np.random.default_rng(1)
    intervals = [bootstrap_interval(rng.beta(8, 2, 30), draws=400, seed=seed) for seed in range(150)]
    assert 0.88 < np.mean([it.low <= 0.8 <= it.high for it in intervals]) < 0.99


@pytest.mark.parametrize("number", [3, 5, 8])
def test_bootstrap_interval_of_few_values_has_its_confidence_level(number: int) -> None:
    rng = np.random.default_rng(2)
    intervals = [bootstrap_interval(rng.normal(0.02, 0.05, number), draws=500, seed=seed) for seed in range(400)]
    assert np.mean([it.low > 0.02 for it in intervals]) < (0.15 if number == 3 else 0.05)


def test_bootstrap_draws_images_of_one_slide_together() -> None:
    values, slides = np.repeat([0.1, 0.5, 0.9, 0.3], 5), np.repeat(["a", "b", "c", "d"], 5)
    by_slide, by_image = bootstrap_interval(values, slides.tolist()), bootstrap_interval(values)
    assert by_slide.value == by_image.value == pytest.approx(0.45)
    one_each = bootstrap_interval(np.array([0.1, 0.5, 0.9, 0.3]))
    assert (by_slide.low, by_slide.high) == pytest.approx((one_each.low, one_each.high))
    assert by_slide.low < by_image.low
    assert by_slide.high > by_image.high


@settings(max_examples=25)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_bootstrap_interval_contains_the_mean(values: list[float]) -> None:
    interval = bootstrap_interval(np.array(values), draws=200)
    assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9
    assert interval.value == pytest.approx(np.mean(values))


@pytest.mark.parametrize("values", [[], [np.nan, np.nan]])
def test_bootstrap_interval_of_no_finite_value(values: list[float]) -> None:
    interval = bootstrap_interval(np.array(values, float))
    assert np.isnan([interval.value, interval.low, interval.high]).all()


def test_references_of_a_lab(source_lab: LabDataset, target_lab: LabDataset) -> None:
    found = {split: lab_references(source_lab, split) for split in ("train", "val", "test")}  # type: ignore[arg-type]
    assert {split: len(them) for split, them in found.items()} == {"train": 4, "val": 2, "test": 2}
    images = [it.image for them in found.values() for it in them]
    assert len(set(images)) == 8
    for them in found.values():
        for it in them:
            assert it.image.stem == it.mask.stem == it.name
            assert it.image.is_file()
            assert it.mask.is_file()
            assert it.mpp == 1.0
    assert lab_references(target_lab, "train") == ()


def test_held_out_references(incoming_labs: tuple[Path, Path]) -> None:
    references = held_out_references(incoming_labs[1], card(mpp=0.5))
    assert [it.name for it in references] == ["lab_b_test_000", "lab_b_test_001"]
    assert all(it.mpp == 0.5 for it in references)
    for it in references:
        assert it.image.parent == incoming_labs[1] / "test" / "images"
        assert it.mask == incoming_labs[1] / "test" / "masks" / it.image.name


def test_held_out_images_of_channels_are_refused(incoming_labs: tuple[Path, Path]) -> None:
    metadata = card().model_copy(update={"channels": (Channel("nuclei"),)})
    with pytest.raises(LabError, match="expected gray or RGB images, got some with channels"):
        held_out_references(incoming_labs[1], metadata)


def test_held_out_images_are_in_no_dataset(
    incoming_labs: tuple[Path, Path], labs: tuple[LabDataset, LabDataset]
) -> None:
    known = {row.sha256 for lab in labs for row in lab.rows}
    masks = {
        image_digest(np.dstack([read_mask(lab.mask_path(row))] * 3))
        for lab in labs
        for row in lab.select(labelled=True)
    }
    for it in (*held_out_references(incoming_labs[0], card()), *held_out_references(incoming_labs[1], card())):
        assert image_digest(read_image(it.image)) not in known
        assert image_digest(np.dstack([read_mask(it.mask)] * 3)) not in masks
    assert len(known) == 14


def test_lab_without_held_out_images(tmp_path: Path) -> None:
    assert held_out_references(tmp_path, card()) == ()
    (tmp_path / "test" / "images").mkdir(parents=True)
    assert held_out_references(tmp_path, card()) == ()


def test_held_out_image_needs_a_mask(incoming_labs: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(incoming_labs[1], tmp_path / "lab")
    (tmp_path / "lab" / "test" / "masks" / "lab_b_test_001.png").unlink()
    with pytest.raises(LabError, match=r"lab_b_test_001\.png: expected a mask of the same name in .*masks, found none"):
        held_out_references(tmp_path / "lab", card())


@pytest.mark.parametrize(
    ("pixels", "fault"),
    [
        (np.full((64, 64), 7, np.uint8), "expected class indices"),
        (np.zeros((64, 60), np.uint8), "expected the image's size 64 x 64"),
    ],
)
def test_held_out_mask_is_validated(
    incoming_labs: tuple[Path, Path], tmp_path: Path, pixels: npt.NDArray[np.uint8], fault: str
) -> None:
    shutil.copytree(incoming_labs[1] / "test", tmp_path / "test")
    write_png(tmp_path / "test" / "masks" / "lab_b_test_001.png", pixels)
    with pytest.raises(LabError, match=rf"masks/lab_b_test_001\.png: {fault}"):
        held_out_references(tmp_path, card())


def test_hidden_files_are_ignored(incoming_labs: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(incoming_labs[1] / "test", tmp_path / "test")
    for name in (".DS_Store", "._lab_b_test_000.png", "Thumbs.db"):
        (tmp_path / "test" / "images" / name).write_bytes(b"?")
    assert len(held_out_references(tmp_path, card())) == 2


def test_names_are_normalized_like_on_ingestion(tmp_path: Path) -> None:
    for folder, name in (("images", "S1.ome.tif"), ("masks", "s1.PNG")):
        (tmp_path / "test" / folder).mkdir(parents=True)
        pixels = np.zeros((20, 20, 3) if folder == "images" else (20, 20), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "test" / folder / name, format="PNG" if folder == "masks" else "TIFF")
    (it,) = held_out_references(tmp_path, card())
    assert (it.name, it.mask.name) == ("S1", "s1.PNG")
