import pytest
import torch

from microseg.errors import PluginError
from microseg.models.config import NetworkConfig
from microseg.models.heads import SemanticHead
from microseg.models.losses import segmentation_loss
from microseg.models.network import PyramidSegmenter


def test_semantic_head_classifies_each_pixel_of_the_finest_level() -> None:
    head = SemanticHead((8, 4), classes=3)
    decoder = [torch.rand(2, 8, 3, 5), torch.rand(2, 4, 6, 10)]
    logits = head(decoder)
    assert logits.shape == (2, 3, 6, 10)
    expected = torch.einsum("kc,bchw->bkhw", head.classify.weight[:, :, 0, 0], decoder[1])
    torch.testing.assert_close(logits, expected + head.classify.bias.view(1, 3, 1, 1))  # type: ignore[union-attr]
    torch.testing.assert_close(head.probabilities(logits).sum(1), torch.ones(2, 6, 10))
    masks = torch.randint(0, 3, (2, 6, 10))
    assert head.loss(logits, masks, 0.5) == segmentation_loss(logits, masks, dice_weight=0.5)


def test_unknown_head_is_reported_with_the_available_ones() -> None:
    with pytest.raises(PluginError, match=r"prediction head \(.*semantic.*\), got 'instance'"):
        PyramidSegmenter(NetworkConfig(classes=("background", "gland"), head="instance"))
