from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from microseg.config.training_params import ArchitectureSettings
from microseg.errors import ModelError
from microseg.inference.engine import Engine
from microseg.models.config import IMAGENET_MEAN, IMAGENET_STD, NetworkConfig
from microseg.models.encoders import BlockEncoder, Encoder, SimpleFeaturePyramid, TimmEncoder, build_encoder
from microseg.models.files import load_network, save_network
from microseg.models.network import PyramidSegmenter, configure_network
from microseg.plugins import plugin_names


def encoder(name: str, channels: tuple[int, ...] = (4, 6)) -> Encoder:
    return build_encoder(ArchitectureSettings(encoder=name, channels=channels))


def test_documented_encoders_are_entry_points() -> None:
    assert {"blocks", "resnet18", "resnet50", "vgg19", "tf_efficientnet_lite0"} <= set(
        plugin_names("microseg.encoders")
    )


@pytest.mark.parametrize(
    ("name", "channels", "decoder_channels", "strides"),
    [
        ("blocks", (4, 6), (6, 4), (2, 4)),
        ("resnet18", (64, 64, 128, 256, 512), (256, 128, 64, 32, 16), (2, 4, 8, 16, 32)),
        ("resnet50", (64, 256, 512, 1024, 2048), (256, 256, 256, 128, 16), (2, 4, 8, 16, 32)),
        ("vgg19", (128, 256, 512, 512, 512), (256, 256, 256, 128, 16), (2, 4, 8, 16, 32)),
        ("tf_efficientnet_lite0", (16, 24, 40, 112, 320), (160, 56, 32, 32, 16), (2, 4, 8, 16, 32)),
        ("convnext_atto", (40, 80, 160, 320), (160, 80, 40, 32), (4, 8, 16, 32)),  # convolutional, no stride 2
        ("pvt_v2_b0", (32, 64, 160, 256), (128, 80, 32, 32), (4, 8, 16, 32)),  # hierarchical transformer
        ("swin_tiny_patch4_window7_224", (96, 192, 384, 768), (256, 192, 96, 48), (4, 8, 16, 32)),  # channels last
        ("mobilevitv2_050", (32, 64, 128, 192, 256), (128, 96, 64, 32, 16), (2, 4, 8, 16, 32)),  # pads some levels
        ("vit_tiny_patch16_224", (32, 64, 128, 256, 256), (128, 128, 64, 32, 16), (2, 4, 8, 16, 32)),  # plain ViT
    ],
)
@torch.no_grad()
def test_has_a_map_at_each_stride(
    name: str, channels: tuple[int, ...], decoder_channels: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    with torch.device("meta"):  # shapes without numbers
        built = encoder(name).eval()
        levels = built(torch.rand(1, 3, 96, 160))
    assert (built.channels, built.decoder_channels(), built.strides) == (channels, decoder_channels, strides)
    assert [tuple(level.shape) for level in levels] == [
        (1, count, 96 // stride, 160 // stride) for count, stride in zip(channels, strides, strict=True)
    ]


@pytest.mark.parametrize("name", ["vgg19", "resnet18", "pvt_v2_b0", "vit_tiny_patch16_224"])
@torch.no_grad()
def test_network_takes_images_of_odd_sizes(name: str) -> None:
    network = PyramidSegmenter(NetworkConfig(classes=("background", "gland"), encoder=name)).eval()
    for height, width in ((65, 91), (32, 47), (7, 3)):
        logits = network(torch.rand(2, 3, height, width))
        assert logits.shape == (2, 2, height, width)
        assert logits.isfinite().all()
    assert len(network.decoder.blocks) == len(network.encoder.channels)


@given(st.lists(st.integers(1, 64), min_size=1, max_size=5))
def test_decoder_mirrors_blocks(channels: list[int]) -> None:
    assert encoder("blocks", tuple(channels)).decoder_channels() == tuple(channels)[::-1]


def test_blocks_are_conv_conv_pool() -> None:
    built = encoder("blocks")
    assert isinstance(built, BlockEncoder)
    kinds = (nn.Conv2d, nn.MaxPool2d)
    layers = [layer for layer in built.modules() if isinstance(layer, kinds)]
    assert [type(layer) for layer in layers] == [nn.Conv2d, nn.Conv2d, nn.MaxPool2d] * 2
    shapes = [tuple(layer.weight.shape) for layer in layers if isinstance(layer, nn.Conv2d)]
    assert shapes == [(4, 3, 3, 3), (4, 4, 3, 3), (6, 4, 3, 3), (6, 6, 3, 3)]


def test_feature_pyramid_upsamples_by_transposed_convolutions() -> None:
    pyramid = SimpleFeaturePyramid(64)
    counts = [sum(isinstance(layer, nn.ConvTranspose2d) for layer in level.modules()) for level in pyramid.levels]
    assert counts == [3, 2, 1, 0, 0]
    maps = pyramid(torch.rand(2, 64, 3, 5))
    assert [tuple(level.shape) for level in maps] == [
        (2, count, 48 // stride, 80 // stride) for count, stride in zip(pyramid.channels, pyramid.strides, strict=True)
    ]


@torch.no_grad()
def test_patches_of_another_size_than_16() -> None:
    levels = encoder("vit_small_patch14_dinov2").eval()(torch.rand(1, 3, 64, 96))
    assert [tuple(level.shape[2:]) for level in levels] == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("blocks", IMAGENET_MEAN, IMAGENET_STD),
        ("resnet18", IMAGENET_MEAN, IMAGENET_STD),
        ("tf_efficientnet_lite0", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("vit_tiny_patch16_224", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ],
)
def test_config_has_the_normalization_of_the_encoder(name: str, mean: object, std: object) -> None:
    config = configure_network(ArchitectureSettings(encoder=name), ("background", "gland"), 0.5)
    assert (config.mean, config.std, config.mpp) == (mean, std, 0.5)
    if name != "blocks":
        pretrained = timm.get_pretrained_cfg(name)
        assert (config.mean, config.std) == (pretrained.mean, pretrained.std)


def test_unknown_encoder_is_reported_with_the_available_ones() -> None:
    with pytest.raises(ModelError, match=r"blocks, resnet18, resnet50, .*vgg19.* got 'resnet17'"):
        encoder("resnet17")


def test_rejects_models_for_images_of_one_size() -> None:
    with pytest.raises(ModelError, match=r"images of any size, got 'coat_lite_tiny', which takes only .*224"):
        encoder("coat_lite_tiny")


def test_rejects_strides_that_do_not_double(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: TimmEncoder, settings: ArchitectureSettings) -> None:
        Encoder.__init__(self, settings)
        self.channels, self.strides = (8, 8), (4, 16)

    monkeypatch.setattr(TimmEncoder, "__init__", wrong)
    with pytest.raises(ModelError, match=r"at each stride 2, 4, 8.*got 'resnet18' with strides \[4, 16\]"):
        encoder("resnet18")


@pytest.mark.parametrize("name", ["resnet18", "pvt_v2_b0", "vit_tiny_patch16_224"])
def test_each_family_trains_is_saved_and_segments(name: str, tmp_path: Path) -> None:
    """A convolutional network, a hierarchical transformer and a plain one: training, files, inference."""
    torch.manual_seed(0)
    network = PyramidSegmenter(NetworkConfig(classes=("background", "gland"), encoder=name)).train()
    images, masks = torch.rand(2, 3, 64, 96), torch.zeros(2, 64, 96, dtype=torch.long)
    masks[:, 16:48, 20:70] = 1
    images[:, 0][masks == 1] *= 0.3
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = network.head.loss(network(images), masks, dice_weight=1)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(value.grad is not None for value in network.encoder.pretrained_module().parameters())

    save_network(tmp_path, network)
    loaded = load_network(tmp_path)
    with torch.no_grad():
        expected = loaded.head.probabilities(loaded(images[:1]))[0]
        torch.testing.assert_close(network.eval().head.probabilities(network(images[:1]))[0], expected)
    image = (images[0].permute(1, 2, 0) * 255).round().byte().numpy()
    engine = Engine(loaded, tile=128, halo=16)
    with torch.no_grad():
        direct = loaded(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255).softmax(1)[0]
    torch.testing.assert_close(torch.from_numpy(engine.probabilities(image)), direct, atol=1e-4, rtol=1e-3)
