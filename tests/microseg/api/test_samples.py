import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from microseg.api.samples import crop_size, image_samples, labelled_samples, with_corrections
from microseg.config.training_params import TrainSettings
from microseg.datasets.dataset import LabDataset
from microseg.datasets.sampling import Sample
from microseg.models.config import NetworkConfig
from microseg.slides.images import write_png


def test_labelled_regions_of_the_target_lab_are_trained_on(source_lab: LabDataset, tmp_path: Path) -> None:
    folder = tmp_path / "lab_c"
    shutil.copytree(source_lab.folder, folder)
    target = dataclasses.replace(source_lab, folder=folder)
    train = target.select(split="train")
    for number, row in enumerate(target.rows):
        mask = np.full((row.height, row.width), 255, np.uint8)
        mask[10:20, 30:50] = number % 2
        write_png(target.mask_path(row), mask)
    source = [Sample(tmp_path / f"{number}.png", tmp_path / "m.png") for number in range(60)]
    config = NetworkConfig(classes=target.metadata.classes)
    samples = with_corrections(source, [target], config, 0.25)
    assert samples[:60] == source
    corrected = samples[60:]
    assert len(corrected) == 20  # a quarter of all
    assert {it.image for it in corrected} == {target.image_path(row) for row in train}
    assert {it.focus for it in corrected} == {(30, 10, 50, 20)}
    assert with_corrections(source, [target], config, 0.0) == source
    unlabelled = dataclasses.replace(target, rows=tuple(dataclasses.replace(row, mask=None) for row in target.rows))
    assert with_corrections(source, [unlabelled], config, 0.25) == source


@pytest.mark.parametrize(
    ("side", "mpp", "crop", "batch", "expected"),
    [
        (600, 1.0, 256, 4, (256, 4)),  # larger images than crops
        (128, 1.0, 256, 4, (128, 16)),  # crops of the images' size, four times as many
        (100, 1.0, 256, 4, (128, 16)),  # rounded up to 32
        (64, 1.0, 256, 4, (64, 16)),  # not more than four times as many
        (256, 0.5, 256, 4, (128, 16)),  # 128 pixels at the model's scale
        (256, None, 256, 2, (256, 2)),  # scale unknown
    ],
)
def test_crop_size_follows_image_size(
    source_lab: LabDataset, side: int, mpp: float | None, crop: int, batch: int, expected: tuple[int, int]
) -> None:
    rows = tuple(dataclasses.replace(row, width=2 * side, height=side, mpp=mpp) for row in source_lab.rows)
    lab = dataclasses.replace(source_lab, rows=rows)
    assert crop_size([lab], TrainSettings(crop_size=crop, batch_size=batch), 1.0) == expected


def test_images_are_resized_to_the_models_scale(source_lab: LabDataset) -> None:
    rows = (
        dataclasses.replace(source_lab.rows[0], mpp=0.25, split="train"),
        dataclasses.replace(source_lab.rows[1], mpp=None, split="train"),
    )
    lab = dataclasses.replace(source_lab, rows=rows)
    config = NetworkConfig(classes=lab.metadata.classes, mpp=0.5)
    assert [it.zoom for it in labelled_samples([lab], config)] == [0.5, 1.0]
    assert [it.zoom for it in image_samples(lab, None)] == [1.0, 1.0]
