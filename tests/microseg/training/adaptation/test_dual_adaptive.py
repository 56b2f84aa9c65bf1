import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch.nn import functional

from microseg.annotations.index_masks import read_mask
from microseg.config.training_params import AdaptSettings
from microseg.datasets.sampling import Crops, CropSampler, Sample
from microseg.errors import TrainingError
from microseg.training.adaptation.domain_shift import DomainShift, TargetLab
from microseg.training.adaptation.dual_adaptive import AdaptationBatch, DualAdaptivePyramid, grl_strength
from microseg.training.adaptation.normalization import mix_statistics, read_statistics
from microseg.training.adaptation.region_rules import RegionRules, region_rules
from microseg.training.color_augmentation import transfer_color

Make = Callable[..., DualAdaptivePyramid]


def random_batch(pseudo_labels: bool, seed: int = 0, crops: int = 2, side: int = 16) -> AdaptationBatch:
    generator = torch.Generator().manual_seed(seed)

    def crop() -> Crops:
        masks = torch.randint(2, (crops, side, side), generator=generator)
        masks[0, :3] = 255
        return Crops(torch.rand(crops, 3, side, side, generator=generator, dtype=torch.float64), masks)

    source, target = crop(), crop()
    return AdaptationBatch(source, target if pseudo_labels else Crops(target.images, None))


def reference_segmentation_loss(logits: torch.Tensor, masks: torch.Tensor, alpha: float) -> torch.Tensor:
    """Cross entropy and Dice over a list of the valid pixels."""
    counted = masks.flatten() != 255
    p = logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1]).softmax(1)[counted]  # (n, K)
    y = functional.one_hot(masks.flatten()[counted], logits.shape[1])  # (n, K)
    cross_entropy = -(p.log() * y).sum(1).mean()
    dice = (2 * (p * y).sum(0) / (p.sum(0) + y.sum(0))).mean()
    return cross_entropy + alpha * (1 - dice)


@pytest.mark.parametrize("normalization", ["shared", "running"])
@pytest.mark.parametrize(
    ("image", "feature", "pseudo_labels"),
    [(0.3, 0.7, 0.6), (0.3, 0.0, 0.0), (0.0, 0.7, 0.0), (0.0, 0.0, 0.6), (0.3, 0.7, 0.0)],
)
def test_gradients_are_those_of_the_min_max_game(
    dual_adaptive: Make, image: float, feature: float, pseudo_labels: float, normalization: str
) -> None:
    """Gradients of one backward pass against those of the separate objectives of segmenter and classifiers."""
    values: dict[str, Any] = {"lambda_image": image, "lambda_feature": feature, "pseudo_label_weight": pseudo_labels}
    method = dual_adaptive(dice_weight=0.8, grl_warmup=0.5, normalization=normalization, **values).double()
    method.train()
    progress, batch = 1 / 8, random_batch(pseudo_labels > 0)
    reference = copy.deepcopy(method)

    method(batch, progress)["total"].backward()

    network = reference.network
    source, target = network.features(batch.source.images), network.features(batch.target.images)
    strength = 2 / (1 + math.exp(-10 * 1 / 4)) - 1  # p = 1/4: an eighth of the training, warm-up half of it
    assert batch.source.masks is not None
    objective = reference_segmentation_loss(source.logits, batch.source.masks, 0.8)
    if batch.target.masks is not None:
        objective = objective + pseudo_labels * reference_segmentation_loss(target.logits, batch.target.masks, 0)
    players = []
    for weight, classifier, own, other in (
        (image, reference.image_classifier, source.pyramid, target.pyramid),
        (feature, reference.feature_classifier, source.decoder, target.decoder),
    ):
        if classifier is not None:
            a, b = classifier(own), classifier(other)  # the target is 1: −log σ(b); the source is 0: −log (1 − σ(a))
            loss = 0.5 * (torch.log1p(a.exp()).mean() + torch.log1p((-b).exp()).mean())
            players.append((classifier, loss))
            objective = objective - strength * weight * loss
    expected = torch.autograd.grad(objective, list(network.parameters()), retain_graph=True)
    for got, wanted in zip(method.network.parameters(), expected, strict=True):
        torch.testing.assert_close(got.grad, wanted)
    classifiers = method.classifiers()
    assert len(classifiers) == len(players) == (image > 0) + (feature > 0)
    for trained, (classifier, loss) in zip(classifiers, players, strict=True):
        expected = torch.autograd.grad(loss, list(classifier.parameters()), retain_graph=True)
        for got, wanted in zip(trained.parameters(), expected, strict=True):
            torch.testing.assert_close(got.grad, wanted)
    assert method.averaged is not None
    assert all(parameter.grad is None for parameter in method.averaged.parameters())


@pytest.mark.parametrize(
    ("off", "names"),
    [
        ("lambda_image", {"segmentation", "domain_feature", "pseudo_labels"}),
        ("lambda_feature", {"segmentation", "domain_image", "pseudo_labels"}),
        ("pseudo_label_weight", {"segmentation", "domain_image", "domain_feature"}),
    ],
)
def test_disabled_level_has_no_classifier_and_no_loss(
    dual_adaptive: Make, fabric: Fabric, off: str, names: set[str]
) -> None:
    method = dual_adaptive(**{off: 0.0})
    method.before_step(0, fabric)
    losses = method(method.inputs(0), 0)
    assert losses.keys() == names | {"total"}
    assert (method.image_classifier is None) == (off == "lambda_image")
    assert (method.feature_classifier is None) == (off == "lambda_feature")
    torch.testing.assert_close(losses["total"].detach(), torch.stack([losses[name] for name in names]).sum())
    assert not any(losses[name].requires_grad for name in names)


def test_trains_on_the_source_only_if_all_is_disabled(dual_adaptive: Make) -> None:
    method = dual_adaptive(lambda_image=0, lambda_feature=0, pseudo_label_weight=0, ema_decay=0, dice_weight=0.5)
    batch = method.inputs(0)
    unusable = Crops(torch.full_like(batch.target.images, float("nan")), None)
    losses = method(AdaptationBatch(batch.source, unusable), 0)
    assert losses.keys() == {"total", "segmentation"}
    assert losses["total"].isfinite()
    assert method.averaged is None
    assert method.result() is method.network


@pytest.mark.parametrize(
    ("progress", "ramp", "expected"),
    [
        (0, 0.5, 0.0),
        (0.1, 0.5, 2 / (1 + math.exp(-2)) - 1),  # p = 10 / 50
        (0.25, 0.5, 0.9866142981514303),  # p = 0.5: (1 − e⁻⁵) / (1 + e⁻⁵)
        (0.5, 0.5, 0.9999092042625951),  # p = 1: (1 − e⁻¹⁰) / (1 + e⁻¹⁰)
        (0.99, 0.5, 0.9999092042625951),
        (0.5, 1.0, 0.9866142981514303),
        (0, 0.0, 0.9999092042625951),
    ],
)
def test_grl_strength_by_hand(progress: float, ramp: float, expected: float) -> None:
    assert grl_strength(progress, ramp) == pytest.approx(expected, abs=1e-15)


def test_pseudo_labels_are_updated_in_rounds(dual_adaptive: Make, fabric: Fabric) -> None:
    """At each third of the training, and not in between."""
    method = dual_adaptive(pseudo_label_rounds=3)
    seen = []
    for progress in (0, 0.2, 0.34, 0.5, 0.7, 0.99, 1.0):
        method.before_step(progress, fabric)
        seen.append({sample.mask.parent.parent.name for sample in method.target.samples if sample.mask})
    assert seen == [{"round-0"}] * 2 + [{"round-1"}] * 2 + [{"round-2"}] * 3
    assert sorted(file.name for file in method.folder.iterdir()) == ["initial", "round-0", "round-1", "round-2"]


def test_target_crops_are_drawn_from_the_windows(dual_adaptive: Make, target_lab: TargetLab) -> None:
    drawn = CropSampler([Sample(window) for window in target_lab.windows], size=16, batch=2, seed=4).draw(3).images
    same = dual_adaptive(target_color_jitter=0.0).inputs(3).target
    assert torch.equal(same.images, drawn)
    assert same.masks is None
    strong = dual_adaptive(target_color_jitter=1.0).inputs(3).target
    assert (strong.images - drawn).abs().mean() > 0.02


def test_source_crops_keep_masks_and_take_target_colors(dual_adaptive: Make, source: CropSampler) -> None:
    drawn = source.draw(3)
    same = dual_adaptive(source_color_jitter=0.0, color_transfer_prob=0.0).inputs(3).source
    assert drawn.masks is not None
    assert same.masks is not None
    assert torch.equal(same.masks, drawn.masks)
    torch.testing.assert_close(same.images, drawn.images, atol=1e-5, rtol=0)
    method = dual_adaptive(source_color_jitter=0.0, color_transfer_prob=1.0)
    moved = method.inputs(3).source
    assert moved.masks is not None
    assert torch.equal(moved.masks, drawn.masks)
    for image, original in zip(moved.images, drawn.images, strict=True):
        ways = [  # from the image to each of the target's colors
            transfer_color(original[None], method.colors[torch.tensor([pick])], torch.tensor([way / 20]))[0]
            for pick in range(len(method.colors.mean))
            for way in range(21)
        ]
        assert min(float((way - image).abs().max()) for way in ways) < 0.05
        assert float((original - image).abs().max()) > 0.02


def test_maps_of_the_colors_transfer_these_colors(dual_adaptive: Make) -> None:
    """Those of a batch, computed where the crops are drawn, equal the transfer of the whole crops."""
    method, images = dual_adaptive(), torch.randint(30, 220, (8, 3, 16, 16), dtype=torch.uint8)
    colors = method.draw_colors(images, torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(2)
    picks = torch.randint(len(method.colors.mean), (8,), generator=generator)
    amount = torch.rand(8, generator=generator)
    amount = amount * (torch.rand(8, generator=generator) < 0.5)
    assert 0 < int((amount > 0).sum()) < 8
    expected = transfer_color(images.float() / 255, method.colors[picks], amount)
    torch.testing.assert_close(method.recolor(images.float() / 255, colors, generator), expected, atol=1e-5, rtol=0)


def test_source_crops_are_also_at_the_target_scale(dual_adaptive: Make, target_lab: TargetLab) -> None:
    def zooms(zoom: float) -> list[float]:
        shift = DomainShift(zoom, target_lab.shift.statistics, target_lab.shift.zoomed_statistics)
        return [sample.zoom for sample in dual_adaptive(shift=shift).source.samples]

    assert zooms(1.0) == zooms(1.05) == [1.0] * 5
    assert zooms(0.5) == [1.0] * 10 + [2.0] * 5
    assert zooms(2.0) == [1.0] * 10 + [0.5] * 5


def test_region_rules_are_estimated_from_source_masks(
    dual_adaptive: Make, noise: tuple[list[Sample], list[Sample]]
) -> None:
    masks = [(read_mask(it.mask), it.zoom) for it in noise[0] if it.mask is not None]
    assert dual_adaptive().priors.rules == region_rules(masks, 2) != RegionRules()
    assert dual_adaptive(region_rules=False).priors.rules == RegionRules()


def test_shared_statistics_are_half_source_half_target(
    dual_adaptive: Make, target_lab: TargetLab, tiny_network: Callable[..., Any]
) -> None:
    method = dual_adaptive(normalization="shared")
    wanted = mix_statistics(read_statistics(tiny_network(0)), target_lab.shift.statistics, 0.5)
    method.train()
    method(method.inputs(0), 0)
    for network in (method.network, method.averaged):
        assert network is not None
        got = read_statistics(network)
        torch.testing.assert_close(got.means[0], wanted.means[0])
        torch.testing.assert_close(got.variances[-1], wanted.variances[-1])
    running = dual_adaptive(normalization="running")
    running.train()
    running(running.inputs(0), 0)
    assert not torch.equal(read_statistics(running.network).means[0], read_statistics(tiny_network(0)).means[0])


def test_target_labs_have_equal_weight(
    dual_adaptive: Make,
    target_lab: TargetLab,
    noise: tuple[list[Sample], Any],
    tiny_network: Callable[..., Any],
    tmp_path: Path,
) -> None:
    shift = target_lab.shift
    far = shift.statistics._replace(means=tuple(mean + 8 for mean in shift.statistics.means))
    labs = [target_lab, TargetLab("lab_c", target_lab.windows, DomainShift(1.0, far, far))]
    settings = AdaptSettings(steps=8)
    method = DualAdaptivePyramid(tiny_network(), noise[0], labs, settings, crop=16, batch=2, seed=0, folder=tmp_path)
    own = read_statistics(tiny_network()).means[0]
    wanted = 0.5 * own + 0.25 * shift.statistics.means[0] + 0.25 * far.means[0]
    torch.testing.assert_close(read_statistics(method.network).means[0], wanted)
    assert len(method.target.samples) == 2 * len(target_lab.windows)


def test_batches_depend_only_on_the_step(dual_adaptive: Make) -> None:
    one, other = dual_adaptive(), dual_adaptive(seed=9)
    one.inputs(0)
    torch.manual_seed(77)
    for step in (5, 2):
        a, b = one.inputs(step), other.inputs(step)
        assert torch.equal(a.source.images, b.source.images)
        assert torch.equal(a.target.images, b.target.images)
    assert not torch.equal(one.inputs(1).target.images, one.inputs(2).target.images)


def test_source_and_target_batches_do_not_mix(dual_adaptive: Make) -> None:
    """Batch statistics of one lab must not depend on images of another."""
    method = dual_adaptive(pseudo_label_weight=0, lambda_feature=0, lambda_image=1e-9, normalization="running")
    batch = method.inputs(0)
    bright = AdaptationBatch(batch.source, Crops(batch.target.images * 0 + 1, None))
    torch.testing.assert_close(method(batch, 0)["segmentation"], method(bright, 0)["segmentation"])


def test_parameter_groups_hold_every_trained_parameter_once(dual_adaptive: Make) -> None:
    method = dual_adaptive(learning_rate=0.25, classifier_learning_rate=0.5)
    groups = method.parameter_groups()
    assert [group["lr"] for group in groups] == [0.25, 0.5, 0.5]
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(parameter) for parameter in method.parameters() if parameter.requires_grad}
    assert method.averaged is not None
    assert not set(ids) & {id(parameter) for parameter in method.averaged.parameters()}


def test_requires_source_masks(
    noise: tuple[list[Sample], Any], target_lab: TargetLab, tiny_network: Callable[..., Any], tmp_path: Path
) -> None:
    source = [*noise[0], Sample(noise[0][0].image)]
    with pytest.raises(TrainingError, match=r"Expected a mask for every image.*manifest\.csv"):
        DualAdaptivePyramid(
            tiny_network(), source, [target_lab], AdaptSettings(), crop=16, batch=2, seed=0, folder=tmp_path
        )
