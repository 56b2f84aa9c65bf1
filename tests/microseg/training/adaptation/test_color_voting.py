import numpy as np
import numpy.typing as npt
import torch

from microseg.training.adaptation.color_voting import color_clusters, color_predicts_classes, voted_labels
from microseg.training.adaptation.region_rules import RegionRules

Image = npt.NDArray[np.uint8]


def cells(seed: int) -> tuple[Image, Image]:
    """Squares of class 1 on ground, each class in a color of its own, with noise."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((40, 40), np.uint8)
    mask[5:15, 5:15] = mask[20:35, 20:35] = 1
    colors = np.array([[230, 220, 225], [120, 60, 150]])
    return np.clip(colors[mask] + rng.normal(0, 8, (40, 40, 3)), 0, 255).astype(np.uint8), mask


def said(mask: Image, sure: float = 0.9) -> torch.Tensor:
    one = torch.from_numpy(np.where(mask == 1, sure, 1 - sure)).float()
    return torch.stack([1 - one, one])


def test_pixels_of_unlike_colors_are_of_different_groups() -> None:
    images = [cells(seed)[0] for seed in range(3)]
    groups = color_clusters(images)
    assert [group.shape for group in groups] == [(40, 40)] * 3
    inner = [np.s_[22:33, 22:33], np.s_[5:15, 25:35]]  # off the borders, where colors are mixed
    square, ground = ({int(it) for group in groups for it in np.unique(group[place])} for place in inner)
    assert not square & ground
    assert max(square | ground) < 32


def test_an_image_of_one_color_can_be_divided() -> None:
    (group,) = color_clusters([np.full((8, 9, 3), 200, np.uint8)])
    assert group.shape == (8, 9)


def test_groups_depend_on_the_images_alone() -> None:
    image, _ = cells(0)
    assert np.array_equal(color_clusters([image])[0], color_clusters([image])[0])


def test_color_tells_classes_that_differ_by_it() -> None:
    images, masks = zip(*(cells(seed) for seed in range(3)), strict=True)
    assert color_predicts_classes(images, masks, 2)
    ignored = [np.where(mask == 1, np.uint8(255), mask) for mask in masks]
    assert not color_predicts_classes(images, ignored, 2)  # one class alone: nothing to tell


def test_color_does_not_tell_classes_that_differ_by_shape() -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(3)]
    assert not color_predicts_classes(images, [cells(0)[1]] * 3, 2)


def test_where_a_segmenter_contradicts_what_is_said_of_a_color_elsewhere_nothing_is_said() -> None:
    pairs = [cells(seed) for seed in range(8)]
    groups = color_clusters([image for image, _ in pairs])
    wrong = pairs[7][1].copy()
    wrong[20:35, 20:35] = 0
    wrong[20:35, 2:12] = 1  # ground, taken for an object in this image alone
    probabilities = [said(mask) for _, mask in pairs[:7]] + [said(wrong, 0.7)]
    labels = voted_labels(probabilities, groups, RegionRules(), 1.0)
    for label, (_, mask) in zip(labels[:7], pairs, strict=False):
        assert np.mean(label == mask) > 0.97
    assert np.mean(labels[7][20:35, 20:35] == 255) > 0.97
    assert np.mean(labels[7][20:35, 2:12] == 255) > 0.97
    right = wrong == pairs[7][1]
    assert np.mean(labels[7][right] == wrong[right]) > 0.97


def test_regions_that_cannot_be_do_not_vote() -> None:
    """Objects of a color of their own, all taken for class 1, too small for it: nothing of them is left."""
    image, mask = cells(0)
    image[2:5, 30:33] = image[36:39, 4:7] = (200, 80, 60)
    taken = mask.copy()
    taken[2:5, 30:33] = taken[36:39, 4:7] = 1
    groups = color_clusters([image])
    rules = RegionRules((0.0, 20.0), (0.0, 0.0), ((), ()))
    (label,) = voted_labels([said(taken)], groups, rules, 1.0)
    assert np.mean(label == mask) > 0.97
    assert not label[2:5, 30:33].any()
