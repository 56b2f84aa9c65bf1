import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microseg.errors import ModelError
from microseg.models.config import NetworkConfig
from microseg.models.domain_classifiers import FeatureDomainClassifier, ImageDomainClassifier
from microseg.models.gradient_reversal import reverse_gradient
from microseg.models.network import PyramidSegmenter
from microseg.training.losses.domain import domain_loss
from microseg.training.losses.segmentation import segmentation_loss


@settings(deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1), st.floats(0, 10))
def test_identity_forwards_minus_strength_backwards(values: list[float], strength: float) -> None:
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    out = reverse_gradient(x, strength)
    assert torch.equal(out, x)
    (plain,) = torch.autograd.grad(x.sin().sum(), x)
    (turned,) = torch.autograd.grad(out.sin().sum(), x)
    torch.testing.assert_close(turned, -strength * plain)


@pytest.mark.parametrize("strength", [-0.1, float("nan")])
def test_negative_strength_is_refused(strength: float) -> None:
    with pytest.raises(ModelError, match="0 or more"):
        reverse_gradient(torch.zeros(1), strength)


def test_one_backward_pass_plays_both_sides_of_the_game() -> None:
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
