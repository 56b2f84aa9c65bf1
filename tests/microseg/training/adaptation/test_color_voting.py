import numpy as np
import numpy.typing as npt
import torch

from microseg.training.adaptation.color_voting import color_clusters, color_predicts_classes, voted_labels
from microseg.training.adaptation.region_rules import RegionRules

Image = npt.NDArray[np.uint8]


def cells(seed: int) -> tuple[Image, Image]:
    """Squares of class 1 on background, each class in another color, with noise."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((40, 40), np.uint8)
    mask[5:15, 5:15] = mask[20:35, 20:35] = 1
    colors = np.array([[230, 220, 225], [120, 60, 150]])
    return np.clip(colors[mask] + rng.normal(0, 8, (40, 40, 3)), 0, 255).astype(np.uint8), mask


def prediction(mask: Image, sure: float = 0.9) -> torch.Tensor:
    one = torch.from_numpy(np.where(mask == 1, sure, 1 - sure)).float()
    return torch.stack([1 - one, one])


def test_different_colors_are_in_different_clusters() -> None:
    images = [cells(seed)[0] for seed in range(3)]
    groups = color_clusters(images)
    assert [group.shape for group in groups] == [(40, 40)] * 3
    inner = [np.s_[22:33, 22:33], np.s_[5:15, 25:35]]  # off the borders, where colors are mixed
    square, ground = ({int(it) for group in groups for it in np.unique(group[place])} for place in inner)
    assert not square & ground
    assert max(square | ground) < 32


def test_dim_signal_on_a_dark_background_has_clusters_of_its_own() -> None:
    rng, mask = np.random.default_rng(0), cells(0)[1]
    light = np.clip(np.where(mask == 1, 40, 4)[..., None] + rng.normal(0, 3, (40, 40, 3)), 0, 255)
    (group,) = color_clusters([np.asarray(light, np.uint8)])
    assert not set(np.unique(group[22:33, 22:33])) & set(np.unique(group[5:15, 25:35]))


def test_image_of_one_color_can_be_clustered() -> None:
    (group,) = color_clusters([np.full((8, 9, 3), 200, np.uint8)])
    assert group.shape == (8, 9)


def test_clusters_depend_only_on_the_images() -> None:
    image, _ = cells(0)
    assert np.array_equal(color_clusters([image])[0], color_clusters([image])[0])


def test_color_predicts_classes_of_different_color() -> None:
    images, masks = zip(*(cells(seed) for seed in range(3)), strict=True)
    assert color_predicts_classes(images, masks, 2)
    ignored = [np.where(mask == 1, np.uint8(255), mask) for mask in masks]
    assert not color_predicts_classes(images, ignored, 2)  # a single class has no entropy


def test_color_does_not_predict_classes_of_different_shape() -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(3)]
    assert not color_predicts_classes(images, [cells(0)[1]] * 3, 2)


def test_pixels_whose_prediction_contradicts_the_vote_are_ignored() -> None:
    pairs = [cells(seed) for seed in range(8)]
    groups = color_clusters([image for image, _ in pairs])
    wrong = pairs[7][1].copy()
    wrong[20:35, 20:35] = 0
    wrong[20:35, 2:12] = 1  # background, predicted as an object in this image only
    probabilities = [prediction(mask) for _, mask in pairs[:7]] + [prediction(wrong, 0.7)]
    labels = voted_labels(probabilities, groups, RegionRules(), 1.0)
    for label, (_, mask) in zip(labels[:7], pairs, strict=False):
        assert np.mean(label == mask) > 0.97
    assert np.mean(labels[7][20:35, 20:35] == 255) > 0.97
    assert np.mean(labels[7][20:35, 2:12] == 255) > 0.97
    right = wrong == pairs[7][1]
    assert np.mean(labels[7][right] == wrong[right]) > 0.97


def test_implausible_regions_do_not_vote() -> None:
    """Objects of another color, all predicted as class 1 but too small for it, are removed."""
    image, mask = cells(0)
    image[2:5, 30:33] = image[36:39, 4:7] = (200, 80, 60)
    taken = mask.copy()
    taken[2:5, 30:33] = taken[36:39, 4:7] = 1
    groups = color_clusters([image])
    rules = RegionRules((0.0, 20.0), (0.0, 0.0), ((), ()))
    (label,) = voted_labels([prediction(taken)], groups, rules, 1.0)
    assert np.mean(label == mask) > 0.97
    assert not label[2:5, 30:33].any()
