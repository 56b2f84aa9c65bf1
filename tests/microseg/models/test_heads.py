import pytest
import torch
from pydantic import ValidationError

from microseg.errors import PluginError
from microseg.models.config import NetworkConfig
from microseg.models.heads import InstanceHead, SemanticHead
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
    with pytest.raises(PluginError, match=r"prediction head \(.*semantic.*\), got 'other'"):
        PyramidSegmenter(NetworkConfig(classes=("background", "gland"), head="other"))


def test_instance_head_adds_the_interior() -> None:
    torch.manual_seed(0)
    decoder = [torch.randn(2, 5, 3, 5), torch.randn(2, 4, 6, 10)]
    head = InstanceHead((5, 4), classes=3)
    prediction = head(decoder)
    assert prediction.shape == (2, 4, 6, 10)
    torch.testing.assert_close(head.outputs(prediction)[:, :3], head.probabilities(prediction))
    torch.testing.assert_close(head.outputs(prediction)[:, 3], prediction[:, 3].sigmoid())
    masks = torch.randint(0, 3, (2, 6, 10))
    assert head.loss(prediction, masks, 0.5) == segmentation_loss(prediction[:, :3], masks, dice_weight=0.5)


def test_instance_loss_is_the_cross_entropy_where_the_interior_is_known() -> None:
    head = InstanceHead((4,), classes=2)
    prediction = torch.zeros(1, 3, 2, 2)
    prediction[0, 2] = torch.tensor([[0.0, 2.0], [-1.0, 5.0]])
    interior = torch.tensor([[[1.0, 0.25], [0.0, float("nan")]]])
    p = torch.tensor([0.5, 0.8807970779778823, 0.2689414213699951])
    expected = -(p[0].log() + 0.25 * p[1].log() + 0.75 * (1 - p[1]).log() + (1 - p[2]).log()) / 3
    torch.testing.assert_close(head.instance_loss(prediction, interior), expected)
    assert head.instance_loss(prediction, torch.full((1, 2, 2), float("nan"))) == 0


def test_classes_with_instances_choose_the_head_that_separates_them() -> None:
    options = {"classes": ("background", "nucleus"), "encoder": "blocks", "channels": (4, 4)}
    network = PyramidSegmenter(NetworkConfig(instances=("nucleus",), **options))  # type: ignore[arg-type]
    assert isinstance(network.head, InstanceHead)
    assert network.channels == ("background", "nucleus", "interior")
    assert PyramidSegmenter(NetworkConfig(**options)).channels == ("background", "nucleus")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="expected foreground classes"):
        NetworkConfig(instances=("gland",), **options)  # type: ignore[arg-type]
