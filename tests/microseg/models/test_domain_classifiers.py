import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from microseg.errors import ModelError
from microseg.models.config import NetworkConfig
from microseg.models.domain_classifiers import FeatureDomainClassifier, ImageDomainClassifier, reverse_gradient
from microseg.models.losses import domain_loss, segmentation_loss
from microseg.models.network import PyramidSegmenter


def small_network(channels: tuple[int, ...] = (4, 6, 8)) -> PyramidSegmenter:
    torch.manual_seed(0)
    config = NetworkConfig(classes=("background", "gland"), encoder="blocks", channels=channels, pyramid_channels=8)
    return PyramidSegmenter(config)


@pytest.mark.parametrize("channels", [(4,), (4, 6), (4, 6, 8, 8)])
def test_one_decision_per_image_and_one_per_location(channels: tuple[int, ...]) -> None:
    network = small_network(channels)
    features = network.features(torch.rand(2, 3, 64, 96))
    assert ImageDomainClassifier(network.pyramid_channels)(features.pyramid).shape == (2, 1)
    quarter = 2 if len(channels) == 1 else 4
    logits = FeatureDomainClassifier(network.decoder_channels)(features.decoder)
    assert logits.shape == (2, 1, 64 // quarter, 96 // quarter)


def test_gradient_reaches_every_decoder_level() -> None:
    network = small_network()
    levels = [x.detach().requires_grad_() for x in network.features(torch.rand(2, 3, 32, 32)).decoder]
    FeatureDomainClassifier(network.decoder_channels)(levels).square().sum().backward()
    assert all(level.grad is not None and level.grad.any() for level in levels)


def test_decision_does_not_depend_on_the_rest_of_the_batch() -> None:
    torch.manual_seed(0)
    features = small_network().eval().features(torch.rand(3, 3, 32, 32))
    image, feature = ImageDomainClassifier(8), FeatureDomainClassifier((8, 6, 4))  # in training mode
    torch.testing.assert_close(image(features.pyramid)[:1], image(features.pyramid[:1]))
    alone = feature([level[:1] for level in features.decoder])
    torch.testing.assert_close(feature(features.decoder)[:1], alone)


@pytest.mark.parametrize("which", ["image", "feature"])
def test_learns_to_classify_two_stains(which: str) -> None:
    network = small_network().eval()
    pink, brown = torch.tensor([0.9, 0.6, 0.8]).view(1, 3, 1, 1), torch.tensor([0.6, 0.5, 0.4]).view(1, 3, 1, 1)
    classifier: nn.Module
    if which == "image":
        classifier = ImageDomainClassifier(network.pyramid_channels)
    else:
        classifier = FeatureDomainClassifier(network.decoder_channels)

    def logits(color: Tensor) -> Tensor:
        with torch.no_grad():
            features = network.features((color + 0.1 * torch.randn(4, 3, 32, 32)).clamp(0, 1))
        decision: Tensor = classifier(features.pyramid if which == "image" else features.decoder)
        return decision

    optimizer = torch.optim.Adam(classifier.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        (domain_loss(logits(pink), False) + domain_loss(logits(brown), True)).backward()
        optimizer.step()
    assert (logits(pink) < 0).float().mean() > 0.9
    assert (logits(brown) > 0).float().mean() > 0.9


def test_rejects_another_number_of_levels() -> None:
    with pytest.raises(ModelError, match="expected 2 decoder levels, got 1"):
        FeatureDomainClassifier((8, 4))([torch.rand(1, 8, 4, 4)])


@pytest.mark.parametrize("factor", [1e2, 1e6])
def test_decision_does_not_depend_on_the_scale_of_features(factor: float) -> None:
    """Otherwise the segmenter could defeat a classifier by growing its features."""
    torch.manual_seed(0)
    features = torch.randn(2, 6, 5, 4)
    image, feature = ImageDomainClassifier(6), FeatureDomainClassifier((6,))
    for decide in (image, lambda x: feature([x])):
        large, larger = decide(10 * features), decide(10 * factor * features)
        torch.testing.assert_close(large, larger, atol=0.02, rtol=0.02)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1), st.floats(0, 10))
def test_gradient_reversal_is_identity_forward_and_minus_strength_backward(
    values: list[float], strength: float
) -> None:
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    out = reverse_gradient(x, strength)
    assert torch.equal(out, x)
    (plain,) = torch.autograd.grad(x.sin().sum(), x)
    (turned,) = torch.autograd.grad(out.sin().sum(), x)
    torch.testing.assert_close(turned, -strength * plain)


@pytest.mark.parametrize("strength", [-0.1, float("nan")])
def test_gradient_reversal_rejects_negative_strength(strength: float) -> None:
    with pytest.raises(ModelError, match="0 or more"):
        reverse_gradient(torch.zeros(1), strength)


def test_one_backward_pass_solves_the_min_max_game() -> None:
    """Minimizing L_seg + L_img + L_feat through the reversal is min over the segmenter and max over the classifiers.

    The segmenter gets the gradient of L_seg − λ_img L_img − λ_feat L_feat, each classifier that of its own loss.
    """
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        config = NetworkConfig(classes=("background", "gland"), encoder="blocks", channels=(4, 6), pyramid_channels=8)
        network = PyramidSegmenter(config)
        image, feature = ImageDomainClassifier(8), FeatureDomainClassifier(network.decoder_channels)
        source, target = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
        masks = torch.randint(0, 2, (2, 16, 16))
    finally:
        torch.set_default_dtype(torch.float32)
    ours = list(network.parameters())
    theirs = [*image.parameters(), *feature.parameters()]
    strengths = 0.3, 0.7

    def losses(*, reverse: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        parts = network.features(source), network.features(target)
        total = []
        for classifier, strength in ((image, strengths[0]), (feature, strengths[1])):
            loss = torch.zeros((), dtype=torch.float64)
            for part, is_target in zip(parts, (False, True), strict=True):
                if classifier is image:
                    logits = image(reverse_gradient(part.pyramid, strength) if reverse else part.pyramid)
                else:
                    levels = [reverse_gradient(x, strength) if reverse else x for x in part.decoder]
                    logits = feature(levels)
                loss = loss + domain_loss(logits, is_target) / 2
            total.append(loss)
        return segmentation_loss(parts[0].logits, masks), total[0], total[1]

    together = torch.autograd.grad(sum(losses(reverse=True)), [*ours, *theirs])  # type: ignore[arg-type]
    seg, img, feat = losses(reverse=False)
    minimized = torch.autograd.grad(seg - strengths[0] * img - strengths[1] * feat, ours, retain_graph=True)
    maximized = torch.autograd.grad(img + feat, theirs)
    for got, expected in zip(together, [*minimized, *maximized], strict=True):
        torch.testing.assert_close(got, expected)
    assert any(gradient.abs().max() > 1e-3 for gradient in maximized)
