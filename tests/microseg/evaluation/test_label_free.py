from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from microseg.annotations.index_masks import read_mask
from microseg.datasets.dataset import LabDataset
from microseg.evaluation import label_free
from microseg.evaluation.label_free import TargetImage, expected_foreground_share, lab_targets, label_free_scores
from microseg.slides.images import write_png

Image8 = npt.NDArray[np.uint8]


def certain(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    return np.stack([~mask, mask]).astype(np.float32)


def dark(image: Image8, _mpp: float | None) -> npt.NDArray[np.float32]:
    return certain(image.mean(2) < 110)


@pytest.fixture
def target(tmp_path: Path) -> Callable[..., TargetImage]:
    def make(image: Image8, name: str = "a", mpp: float | None = None) -> TargetImage:
        write_png(tmp_path / f"{name}.png", image)
        return TargetImage(name, tmp_path / f"{name}.png", mpp)

    return make


@pytest.fixture
def blob() -> Image8:
    """Light, with a dark patch in one corner, so that each rotation and flip changes it. Not square."""
    image = np.full((40, 60, 3), 235, np.uint8)
    image[4:16, 6:30] = 25
    return image


def test_consistency_of_an_invariant_network_is_high(target: Callable[..., TargetImage], blob: Image8) -> None:
    scores = label_free_scores(dark, [target(blob)], 2)
    assert scores["augmentation_consistency"] > 0.97  # the views are slightly blurred
    assert scores["foreground_share"] == pytest.approx(12 * 24 / (40 * 60))
    assert scores["entropy"] == pytest.approx(0, abs=1e-6)


def test_consistency_of_a_network_that_ignores_the_image(target: Callable[..., TargetImage]) -> None:
    """It predicts the left half of any image. After a rotation by 90° half of that is consistent; a flip upside down
    leaves it.
    """

    def left(image: Image8, _mpp: float | None) -> npt.NDArray[np.float32]:
        return certain(np.arange(image.shape[1])[None] < image.shape[1] // 2) * np.ones(
            (1, *image.shape[:2]), np.float32
        )

    scores = label_free_scores(left, [target(np.full((32, 32, 3), 200, np.uint8))], 2)
    assert scores["augmentation_consistency"] == pytest.approx((0 + 1) / 2)  # kappa of two halves that cross is 0
    assert scores["foreground_share"] == 0.5


def test_views_differ_in_color_and_position(target: Callable[..., TargetImage], blob: Image8) -> None:
    seen: list[Image8] = []

    def segment(image: Image8, mpp: float | None) -> npt.NDArray[np.float32]:
        seen.append(image)
        return dark(image, mpp)

    label_free_scores(segment, [target(blob)], 2)
    original, quarter, upside_down = seen
    assert np.array_equal(original, blob)
    assert quarter.shape == (60, 40, 3)
    assert upside_down.shape == (40, 60, 3)
    assert dark(quarter, None)[1][-30:-6, 4:16].mean() > 0.9  # the corner top left is then bottom left
    assert dark(upside_down, None)[1][24:36, 6:30].mean() > 0.9
    assert np.abs(np.rot90(quarter, -1).astype(int) - blob).mean() > 1
    again: list[Image8] = []
    label_free_scores(lambda image, mpp: (again.append(image), dark(image, mpp))[1], [target(blob)], 2)
    assert all(np.array_equal(a, b) for a, b in zip(seen, again, strict=True))


def test_consistency_of_a_collapsed_network_is_zero(target: Callable[..., TargetImage], blob: Image8) -> None:
    def nothing(image: Image8, _mpp: float | None) -> npt.NDArray[np.float32]:
        return certain(np.zeros(image.shape[:2], bool))

    scores = label_free_scores(nothing, [target(blob)], 2)
    assert scores["augmentation_consistency"] == 0
    assert scores["foreground_share"] == 0


def test_means_leave_out_undefined_values(target: Callable[..., TargetImage], blob: Image8) -> None:
    white, names = np.full((20, 20, 3), 250, np.uint8), []
    seen: list[Any] = []

    def segment(image: Image8, mpp: float | None) -> npt.NDArray[np.float32]:
        seen.append(mpp)
        return dark(image, mpp)

    scores = label_free_scores(segment, [target(blob, "a", 0.5), target(white, "b")], 2, names.append)
    assert scores["augmentation_consistency"] > 0.97
    assert scores["foreground_share"] == pytest.approx(12 * 24 / (40 * 60) / 2)
    assert names == ["a", "b"]
    assert seen == [0.5] * 3 + [None] * 3


def test_criteria_of_no_images_are_nan() -> None:
    assert np.isnan(list(label_free_scores(dark, [], 2).values())).all()


def test_expected_foreground_share_is_that_of_training_masks(source_lab: LabDataset, target_lab: LabDataset) -> None:
    masks = [read_mask(source_lab.mask_path(row)) for row in source_lab.rows if row.split == "train"]
    assert expected_foreground_share([source_lab]) == pytest.approx(np.mean([(mask > 0).mean() for mask in masks]))
    assert expected_foreground_share([source_lab, target_lab]) == expected_foreground_share([source_lab])
    assert np.isnan(expected_foreground_share([target_lab]))


def test_images_of_a_lab_are_selected_evenly(target_lab: LabDataset) -> None:
    assert [it.name for it in lab_targets(target_lab)] == [Path(row.image).stem for row in target_lab.rows]
    assert all(it.image.is_file() and it.mpp == 1.0 for it in lab_targets(target_lab))
    names = [Path(row.image).stem for row in target_lab.rows]
    assert [it.name for it in lab_targets(target_lab, 3)] == [names[0], names[2], names[5]]  # 0, 2.5, 5
    assert len(lab_targets(target_lab, 99)) == 6
    assert [it.name for it in lab_targets(target_lab, 1)] == names[:1]


def test_views_of_a_gray_image_are_gray(target: Callable[..., TargetImage], blob: Image8) -> None:
    seen: list[Image8] = []
    label_free_scores(lambda image, mpp: (seen.append(image), dark(image, mpp))[1], [target(blob)], 2)
    assert len(seen) == 3
    assert all(np.ptp(view, axis=2).max() == 0 for view in seen)
    assert np.abs(np.rot90(seen[1], -1).astype(int) - blob).mean() > 1


def test_large_image_counts_with_windows_of_it(
    target: Callable[..., TargetImage], blob: Image8, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []

    def segment(image: Image8, mpp: float | None) -> npt.NDArray[np.float32]:
        seen.append(image.shape)
        return dark(image, mpp)

    large = np.tile(blob, (5, 6, 1))  # 200 x 360
    whole = label_free_scores(segment, [target(large)], 2)
    monkeypatch.setattr(label_free, "_LARGEST", 200 * 200)
    monkeypatch.setattr(label_free, "_WINDOW", 120)
    seen.clear()
    windows = label_free_scores(segment, [target(large)], 2)
    assert seen == 12 * [(120, 120, 3)]  # four windows, and two views of each
    for name, value in whole.items():
        assert windows[name] == pytest.approx(value, abs=0.05), name
