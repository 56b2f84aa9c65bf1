import pytest
import torch
from torch import nn

from microseg.errors import ModelError
from microseg.models.config import NetworkConfig
from microseg.models.encoders import BlockEncoder, BodyEncoder, encoder_channels
from microseg.models.network import PyramidSegmenter


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", (64, 64, 128, 256, 512)),
        ("resnet50", (64, 256, 512, 1024, 2048)),
        ("vgg19", (128, 256, 512, 512, 512)),
        ("tf_efficientnet_lite0", (16, 24, 40, 112, 320)),
    ],
)
@torch.no_grad()
def test_every_body_has_a_level_at_each_stride(name: str, channels: tuple[int, ...]) -> None:
    config = NetworkConfig(classes=("background", "gland"), encoder=name)
    network = PyramidSegmenter(config).eval()
    assert encoder_channels(network.encoder) == channels
    levels = network.encoder(torch.rand(1, 3, 64, 96))
    assert [tuple(level.shape) for level in levels] == [
        (1, count, 64 >> i, 96 >> i) for i, count in enumerate(channels, start=1)
    ]
    logits = network(torch.rand(1, 3, 64, 96))
    assert logits.shape == (1, 2, 64, 96)
    assert logits.isfinite().all()
    assert len(network.decoder.blocks) == len(channels)


def test_blocks_are_conv_conv_pool() -> None:
    encoder = BlockEncoder((4, 6))
    kinds = (nn.Conv2d, nn.MaxPool2d)
    parts = [part for part in encoder.modules() if isinstance(part, kinds)]
    assert [type(part) for part in parts] == [nn.Conv2d, nn.Conv2d, nn.MaxPool2d] * 2
    shapes = [tuple(part.weight.shape) for part in parts if isinstance(part, nn.Conv2d)]
    assert shapes == [(4, 3, 3, 3), (4, 4, 3, 3), (6, 4, 3, 3), (6, 6, 3, 3)]
    levels = encoder(torch.rand(2, 3, 8, 12))
    assert [tuple(level.shape) for level in levels] == [(2, 4, 4, 6), (2, 6, 2, 3)]


def test_unknown_encoder_lists_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"got 'resnet17'.*blocks, resnet18, resnet50, vgg19"):
        BodyEncoder("resnet17")


def test_a_body_without_a_level_at_each_stride_is_refused() -> None:
    with pytest.raises(ModelError, match=r"one level at each stride 2, 4, 8.*got 'convnext_atto' with strides \[4,"):
        BodyEncoder("convnext_atto")
