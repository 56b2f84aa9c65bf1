import pytest
import torch
from torch import Tensor, nn

from microseg.errors import ModelError
from microseg.models.config import NetworkConfig
from microseg.models.domain_classifiers import FeatureDomainClassifier, ImageDomainClassifier
from microseg.models.network import PyramidSegmenter
from microseg.training.losses.domain import domain_loss


def small_network(channels: tuple[int, ...] = (4, 6, 8)) -> PyramidSegmenter:
    torch.manual_seed(0)
    config = NetworkConfig(classes=("background", "gland"), encoder="blocks", channels=channels, pyramid_channels=8)
    return PyramidSegmenter(config)


@pytest.mark.parametrize("channels", [(4,), (4, 6), (4, 6, 8, 8)])
def test_one_decision_an_image_and_one_a_location(channels: tuple[int, ...]) -> None:
    network = small_network(channels)
    features = network.features(torch.rand(2, 3, 64, 96))
    assert ImageDomainClassifier(network.pyramid_channels)(features.pyramid).shape == (2, 1)
    quarter = 2 if len(channels) == 1 else 4
    logits = FeatureDomainClassifier(network.decoder_channels)(features.decoder)
    assert logits.shape == (2, 1, 64 // quarter, 96 // quarter)


def test_every_decoder_level_is_heard() -> None:
    network = small_network()
    levels = [x.detach().requires_grad_() for x in network.features(torch.rand(2, 3, 32, 32)).decoder]
    FeatureDomainClassifier(network.decoder_channels)(levels).square().sum().backward()
    assert all(level.grad is not None and level.grad.any() for level in levels)


def test_one_image_is_judged_without_the_others() -> None:
    torch.manual_seed(0)
    features = small_network().eval().features(torch.rand(3, 3, 32, 32))
    image, feature = ImageDomainClassifier(8), FeatureDomainClassifier((8, 6, 4))  # in training mode
    torch.testing.assert_close(image(features.pyramid)[:1], image(features.pyramid[:1]))
    alone = feature([level[:1] for level in features.decoder])
    torch.testing.assert_close(feature(features.decoder)[:1], alone)


@pytest.mark.parametrize("which", ["image", "feature"])
def test_learns_to_tell_two_stains_apart(which: str) -> None:
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


def test_another_number_of_levels_is_refused() -> None:
    with pytest.raises(ModelError, match="expected 2 decoder levels, got 1"):
        FeatureDomainClassifier((8, 4))([torch.rand(1, 8, 4, 4)])


@pytest.mark.parametrize("factor", [1e2, 1e6])
def test_larger_features_do_not_outdo_a_classifier(factor: float) -> None:
    """Else the segmenter would win by size alone."""
    torch.manual_seed(0)
    features = torch.randn(2, 6, 5, 4)
    image, feature = ImageDomainClassifier(6), FeatureDomainClassifier((6,))
    for decide in (image, lambda x: feature([x])):
        large, larger = decide(10 * features), decide(10 * factor * features)
        torch.testing.assert_close(large, larger, atol=0.02, rtol=0.02)
