import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from microseg.data.colour import ColourStatistics, transfer_colour
from microseg.data.sampling import Crops, CropSampler
from microseg.errors import TrainingError
from microseg.training import AdaptationBatch, AdaptSettings, DualAdaptive, reversal_strength

Make = Callable[..., DualAdaptive]


def random_batch(seed: int = 0, crops: int = 2, side: int = 16) -> AdaptationBatch:
    generator = torch.Generator().manual_seed(seed)

    def images() -> torch.Tensor:
        return torch.rand(crops, 3, side, side, generator=generator, dtype=torch.float64)

    masks = torch.randint(2, (crops, side, side), generator=generator)
    masks[0, :3] = 255
    return AdaptationBatch(Crops(images(), masks), images(), images())


def reference_segmentation_loss(logits: torch.Tensor, masks: torch.Tensor, alpha: float) -> torch.Tensor:
    """Cross entropy and Dice over the counted pixels, as one list of pixels."""
    counted = masks.flatten() != 255
    p = logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1]).softmax(1)[counted]  # (n, K)
    y = functional.one_hot(masks.flatten()[counted], logits.shape[1])  # (n, K)
    cross_entropy = -(p.log() * y).sum(1).mean()
    dice = (2 * (p * y).sum(0) / (p.sum(0) + y.sum(0))).mean()
    return cross_entropy + alpha * (1 - dice)


@pytest.mark.parametrize(
    ("image", "feature", "consistency"),
    [(0.3, 0.7, 0.6), (0.3, 0.0, 0.0), (0.0, 0.7, 0.0), (0.0, 0.0, 0.6), (0.3, 0.7, 0.0)],
)
def test_one_step_is_the_min_max_game(dual_adaptive: Make, image: float, feature: float, consistency: float) -> None:
    """The gradients of one backward pass against those of the two players' objectives, each taken by itself."""
    method = dual_adaptive(
        lambda_image=image, lambda_feature=feature, consistency=consistency, alpha=0.8, ramp=0.5, threshold=0.55
    ).double()
    method.train()
    assert method.averaged is not None
    torch.manual_seed(5)
    for parameter in method.averaged.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))  # a teacher that differs from its student
    step, batch = 1, random_batch()
    reference = copy.deepcopy(method)

    method(batch, step)["total"].backward()

    network, teacher = reference.network, reference.averaged
    assert teacher is not None
    source = network.features(batch.source.images)
    target = network.features(batch.target_strong if consistency else batch.target)
    strength = 2 / (1 + math.exp(-10 * 1 / 4)) - 1  # a quarter of the way up: step 1 of the 4 of the ramp
    assert batch.source.masks is not None
    objective = reference_segmentation_loss(source.logits, batch.source.masks, 0.8)
    if consistency:
        certain, label = teacher(batch.target).softmax(1).max(1)
        assert 0 < (certain >= 0.55).double().mean() < 1
        each = -target.logits.log_softmax(1).gather(1, label[:, None])[:, 0]
        objective = objective + consistency * (each * (certain >= 0.55)).sum() / certain.numel()
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
    classifiers = [it for it in (method.image_classifier, method.feature_classifier) if it is not None]
    assert len(classifiers) == len(players) == (image > 0) + (feature > 0)
    for trained, (classifier, loss) in zip(classifiers, players, strict=True):
        expected = torch.autograd.grad(loss, list(classifier.parameters()), retain_graph=True)
        for got, wanted in zip(trained.parameters(), expected, strict=True):
            torch.testing.assert_close(got.grad, wanted)
    assert all(parameter.grad is None for parameter in method.averaged.parameters())


@pytest.mark.parametrize(
    ("off", "names"),
    [
        ("lambda_image", {"segmentation", "domain_feature", "consistency", "pseudo_labelled"}),
        ("lambda_feature", {"segmentation", "domain_image", "consistency", "pseudo_labelled"}),
        ("consistency", {"segmentation", "domain_image", "domain_feature"}),
    ],
)
def test_a_level_that_is_off_has_no_classifier_and_no_loss(dual_adaptive: Make, off: str, names: set[str]) -> None:
    method = dual_adaptive(**{off: 0.0})
    losses = method(method.batch(0, rank=0, world=1), 0)
    assert losses.keys() == names | {"total"}
    assert (method.image_classifier is None) == (off == "lambda_image")
    assert (method.feature_classifier is None) == (off == "lambda_feature")
    parts = [losses[name] for name in names - {"pseudo_labelled"}]
    torch.testing.assert_close(losses["total"].detach(), torch.stack(parts).sum())
    assert not any(losses[name].requires_grad for name in names)


def test_the_teacher_is_heard_from_its_share_of_the_steps_on(dual_adaptive: Make) -> None:
    method = dual_adaptive(steps=10, consistency_from=0.25)
    heard = ["consistency" in method(method.batch(step, rank=0, world=1), step) for step in (0, 2, 3, 9)]
    assert heard == [False, False, True, True]


def test_with_all_off_it_trains_on_the_source_alone(dual_adaptive: Make) -> None:
    method = dual_adaptive(lambda_image=0, lambda_feature=0, consistency=0, average=0, alpha=0.5)
    batch = method.batch(0, rank=0, world=1)
    nothing = torch.full_like(batch.target, float("nan"))
    losses = method(AdaptationBatch(batch.source, nothing, nothing), 0)
    assert losses.keys() == {"total", "segmentation"}
    assert losses["total"].isfinite()
    assert method.averaged is None
    assert method.result() is method.network


@pytest.mark.parametrize(
    ("step", "ramp", "expected"),
    [
        (0, 0.5, 0.0),
        (10, 0.5, 2 / (1 + math.exp(-2)) - 1),  # p = 10 / 50
        (25, 0.5, 0.9866142981514303),  # p = 0.5: (1 − e⁻⁵) / (1 + e⁻⁵)
        (50, 0.5, 0.9999092042625951),  # p = 1: (1 − e⁻¹⁰) / (1 + e⁻¹⁰)
        (99, 0.5, 0.9999092042625951),
        (50, 1.0, 0.9866142981514303),
        (0, 0.0, 0.9999092042625951),
    ],
)
def test_reversal_strength_by_hand(step: int, ramp: float, expected: float) -> None:
    assert reversal_strength(step, 100, ramp) == pytest.approx(expected, abs=1e-15)


def test_masks_of_the_target_are_never_read(dual_adaptive: Make, target: CropSampler) -> None:
    assert target.labelled
    assert not any(sample.mask.exists() for sample in target.samples if sample.mask)
    method = dual_adaptive()
    for step in range(4):
        method(method.batch(step, rank=0, world=1), step)


def test_target_crops_are_those_of_the_sampler(dual_adaptive: Make, target: CropSampler) -> None:
    batch = dual_adaptive(strong=0.0).batch(3, rank=0, world=1)
    expected = target.unlabelled().draw(3).images
    assert torch.equal(batch.target, expected)
    assert torch.equal(batch.target_strong, expected)
    strong = dual_adaptive(strong=1.0).batch(3, rank=0, world=1)
    assert torch.equal(strong.target, expected)
    assert (strong.target_strong - expected).abs().mean() > 0.02


def test_source_crops_keep_their_masks_and_take_the_targets_colours(
    dual_adaptive: Make, source: CropSampler, colours: ColourStatistics
) -> None:
    drawn = source.draw(3)
    same = dual_adaptive(colour=0.0, transfer=0.0).batch(3, rank=0, world=1).source
    assert drawn.masks is not None
    assert same.masks is not None
    assert torch.equal(same.masks, drawn.masks)
    torch.testing.assert_close(same.images, drawn.images, atol=1e-5, rtol=0)
    moved = dual_adaptive(colour=0.0, transfer=1.0).batch(3, rank=0, world=1).source
    assert moved.masks is not None
    assert torch.equal(moved.masks, drawn.masks)
    for image, original in zip(moved.images, drawn.images, strict=True):
        ways = [  # from the image to each of the target's colours
            transfer_colour(original[None], colours[torch.tensor([pick])], torch.tensor([way / 20]))[0]
            for pick in range(3)
            for way in range(21)
        ]
        assert min(float((way - image).abs().max()) for way in ways) < 0.05
        assert float((original - image).abs().max()) > 0.02


def test_batches_depend_on_the_step_alone(dual_adaptive: Make) -> None:
    one, other = dual_adaptive(), dual_adaptive(seed=9)
    one.batch(0, rank=0, world=1)
    torch.manual_seed(77)
    for step in (5, 2):
        a, b = one.batch(step, rank=0, world=1), other.batch(step, rank=0, world=1)
        assert torch.equal(a.source.images, b.source.images)
        assert torch.equal(a.target_strong, b.target_strong)
    assert not torch.equal(one.batch(1, rank=0, world=1).target, one.batch(2, rank=0, world=1).target)


def test_the_teacher_sees_the_batch_with_its_own_statistics_and_keeps_its_running_ones(dual_adaptive: Make) -> None:
    method, batch = dual_adaptive(threshold=0.0), dual_adaptive().batch(0, rank=0, world=1)
    assert method.averaged is not None
    before = method(batch, 0)["consistency"]
    for name, buffer in method.averaged.named_buffers():
        if "running" in name:
            buffer.fill_(7.0)
    torch.testing.assert_close(method(batch, 0)["consistency"], before)
    assert all((b == 7).all() for name, b in method.averaged.named_buffers() if "running" in name)


def test_pseudo_labels_below_the_threshold_teach_nothing(dual_adaptive: Make) -> None:
    method = dual_adaptive(threshold=1.0, lambda_image=0, lambda_feature=0)
    losses = method(method.batch(0, rank=0, world=1), 0)
    assert losses["consistency"] == 0
    assert losses["pseudo_labelled"] == 0
    assert dual_adaptive(threshold=0.0)(method.batch(0, rank=0, world=1), 0)["pseudo_labelled"] == 1


def test_each_lab_passes_by_itself(dual_adaptive: Make) -> None:
    """Batch statistics of one lab must not depend on the other's images."""
    method = dual_adaptive(consistency=0, lambda_feature=0, lambda_image=1e-9)
    batch = method.batch(0, rank=0, world=1)
    bright = AdaptationBatch(batch.source, batch.target * 0 + 1, batch.target_strong)
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


def test_refuses_a_source_without_masks(
    source: CropSampler, target: CropSampler, colours: ColourStatistics, tiny_network: Callable[..., DualAdaptive]
) -> None:
    with pytest.raises(TrainingError, match=r"Expected a mask for every image.*manifest\.csv"):
        DualAdaptive(tiny_network(), source.unlabelled(), target, colours, AdaptSettings())  # type: ignore[arg-type]
