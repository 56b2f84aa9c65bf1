"""Encoders, the extension point ``microseg.encoders``.

A name in ``network.encoder`` is looked up among the entry points of that group; any other name is that of a timm
model. To add an encoder, write a subclass of `Encoder` and declare it in ``pyproject.toml``::

    [project.entry-points."microseg.encoders"]
    my_encoder = "my_package:MyEncoder"
"""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from microseg.config.training_params import ArchitectureSettings
from microseg.errors import ModelError
from microseg.models.config import IMAGENET_MEAN, IMAGENET_STD, Triple
from microseg.models.layers import ConvBlock, conv_bn_relu, initialize
from microseg.plugins import load_plugin, plugin_names

__all__ = ["BlockEncoder", "Encoder", "SimpleFeaturePyramid", "TimmEncoder", "build_encoder"]

GROUP = "microseg.encoders"


class Encoder(nn.Module, ABC):
    """Base class of encoders: what the segmenter requires of one.

    Args:
        settings: The section ``network`` of the parameters.

    Attributes:
        channels: Channels of each level, finest first.
        strides: Input pixels per location of each level, finest first: 2, 4, 8, … or 4, 8, 16, ….
        mean: Mean of each input channel that the weights expect, for inputs in 0..1; ImageNet's by default.
        std: Standard deviation of each input channel that the weights expect, likewise.

    Shape:
        (B, 3, H, W), normalized, H and W multiples of the largest stride → one map per level, finest first, the i-th
        (B, channels[i], H / strides[i], W / strides[i])
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD

    def __init__(self, settings: ArchitectureSettings) -> None:
        super().__init__()
        self.name = settings.encoder

    @abstractmethod
    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps of all levels, finest first."""

    def pretrained_module(self) -> nn.Module:
        """Part of the encoder that weights from a file fill; the whole of it by default."""
        return self

    def decoder_channels(self) -> tuple[int, ...]:
        """Channels of the decoder that suits this encoder, deepest first.

        Classifier bodies are much wider than a decoder has to be: half their channels, within 32..256, and 16 at
        stride 2, which has most of the pixels and of the cost.
        """
        levels = zip(self.channels[::-1], self.strides[::-1], strict=True)
        return tuple(16 if stride == 2 else min(256, max(32, channels // 2)) for channels, stride in levels)


class BlockEncoder(Encoder):
    """Encoder of blocks E1…En, each conv3×3, conv3×3, maxpool ×2; named ``blocks``.

    Shape:
        (B, 3, H, W) → n maps, the i-th (B, channels[i], H/2**(i+1), W/2**(i+1))
    """

    def __init__(self, settings: ArchitectureSettings) -> None:
        super().__init__(settings)
        self.channels = settings.channels
        self.strides = tuple(2 ** (level + 1) for level in range(len(self.channels)))
        self.blocks = nn.ModuleList(
            nn.Sequential(ConvBlock(before, after), nn.MaxPool2d(kernel_size=2))
            for before, after in zip((3, *self.channels[:-1]), self.channels, strict=True)
        )
        initialize(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Outputs of E1…En."""
        levels = []
        for block in self.blocks:
            x = block(x)  # (B, channels[i], H/2**(i+1), W/2**(i+1))
            levels.append(x)
        return levels

    def decoder_channels(self) -> tuple[int, ...]:
        """The encoder's channels, mirrored."""
        return self.channels[::-1]


class TimmEncoder(Encoder):
    """Any timm model with ``features_only``, with random weights: convolutional, hierarchical or plain transformer.

    A model whose levels all have one stride, as vision transformers have, gets a `SimpleFeaturePyramid`.

    Shape:
        (B, 3, H, W) → one map for each stride (2,) 4, 8, …

    Raises:
        ModelError: timm does not know the name, the model takes images of one size only, or its strides do not double
            from level to level.

    Deviation:
        ``vgg19`` is timm's ``vgg19_bn``, the variant with batch normalization: with random weights plain VGG19 hardly
        trains.
    """

    def __init__(self, settings: ArchitectureSettings) -> None:
        super().__init__(settings)
        self.body = create_timm_model(self.name)
        config = self.body.pretrained_cfg
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        strides, channels = self.body.feature_info.reduction(), self.body.feature_info.channels()
        self._channels_last = str(getattr(self.body, "output_fmt", "")).endswith("NHWC")
        self.pyramid: SimpleFeaturePyramid | None = None
        if len(set(strides)) == 1:
            self.patch = int(strides[-1])
            self.pyramid = SimpleFeaturePyramid(channels[-1])
            self.channels, self.strides = self.pyramid.channels, self.pyramid.strides
        else:
            self._levels = [level for level, stride in enumerate(strides) if stride >= 2]
            self.channels = tuple(channels[level] for level in self._levels)
            self.strides = tuple(strides[level] for level in self._levels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps of all levels, finest first."""
        height, width = x.shape[-2:]
        if self.pyramid is not None:
            rows, columns = height // 16, width // 16
            if height % self.patch or width % self.patch:  # patch size other than 16: a slightly different scale
                size = [max(1, round(length / self.patch)) * self.patch for length in (height, width)]
                x = functional.interpolate(x, size=size, mode="bilinear", antialias=True)
            levels: list[Tensor] = self.pyramid(_resized(self._maps(x)[-1], rows, columns))
            return levels
        maps = self._maps(x)  # each (B, channels, about H / stride, W / stride)
        return [
            _resized(maps[level], height // stride, width // stride)
            for level, stride in zip(self._levels, self.strides, strict=True)
        ]

    def _maps(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.body(x)
        return [level.permute(0, 3, 1, 2).contiguous() for level in maps] if self._channels_last else maps

    def pretrained_module(self) -> nn.Module:
        """The timm model, without the feature pyramid."""
        body: nn.Module = self.body
        return body


class SimpleFeaturePyramid(nn.Module):
    """Feature maps at strides 2, 4, 8, 16 and 32 from the one map of a plain vision transformer.

    Finer levels by transposed convolutions, the coarser one by max pooling, and a 3×3 convolution on each.

    Args:
        in_channels: Channels of the map.

    Shape:
        (B, in_channels, H/16, W/16) → 5 maps, the i-th (B, channels[i], H/2**(i+1), W/2**(i+1))

    Reference:
        Li et al., "Exploring plain vision transformer backbones for object detection", ECCV 2022.

    Deviation:
        A level at stride 2 for the decoder's finest skip connection; fewer channels at finer levels; batch
        normalization in the convolutions, as in the rest of the network.
    """

    channels = (32, 64, 128, 256, 256)
    strides = (2, 4, 8, 16, 32)

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        for channels, stride in zip(self.channels, self.strides, strict=True):
            layers: list[nn.Module] = []
            width = in_channels
            for _ in range(max(0, 5 - stride.bit_length())):  # ×8, ×4, ×2
                layers += [nn.ConvTranspose2d(width, max(32, width // 2), 2, stride=2), nn.GELU()]
                width = max(32, width // 2)
            if stride == 32:
                layers.append(nn.MaxPool2d(kernel_size=2))
            self.levels.append(nn.Sequential(*layers, conv_bn_relu(width, channels)))
        initialize(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps of all levels, finest first."""
        return [level(x) for level in self.levels]


def build_encoder(settings: ArchitectureSettings) -> Encoder:
    """Build the encoder that the settings name, with random weights.

    Raises:
        ModelError: The name is unknown, or the levels of the encoder do not suit the decoder.
    """
    kind = load_plugin(GROUP, settings.encoder) if settings.encoder in plugin_names(GROUP) else TimmEncoder
    encoder: Encoder = kind(settings)
    strides = list(encoder.strides)
    if strides != [strides[0] << level for level in range(len(strides))] or strides[0] not in (2, 4):
        raise ModelError(
            f"expected an encoder with a level at each stride 2, 4, 8, … or 4, 8, 16, …, got {settings.encoder!r} with "
            f"strides {strides}; choose one of {', '.join(plugin_names(GROUP))}, or another timm model"
        )
    return encoder


def create_timm_model(name: str, *, pretrained: bool = False) -> Any:
    """Create a timm model that returns its feature maps, for images of any size.

    Raises:
        ModelError: timm does not know the name, or the model takes images of one size only.
    """
    import timm  # with torchvision it takes seconds

    name = "vgg19_bn" if name == "vgg19" else name
    try:
        try:
            return timm.create_model(name, features_only=True, pretrained=pretrained, dynamic_img_size=True)
        except TypeError:  # not a transformer: its models do not have the option
            model: Any = timm.create_model(name, features_only=True, pretrained=pretrained)
    except Exception as error:  # RuntimeError, AttributeError, AssertionError… by model family
        if pretrained:
            raise  # by the hub, mostly
        raise ModelError(
            f"expected the name of an encoder ({', '.join(plugin_names(GROUP))}) or of a timm model with feature maps, "
            f"got {name!r} ({error}); correct network.encoder"
        ) from error
    if model.pretrained_cfg.get("fixed_input_size"):
        raise ModelError(
            f"expected an encoder for images of any size, got {name!r}, which takes only images of "
            f"{model.pretrained_cfg['input_size'][1:]} pixels; choose another one"
        )
    return model


def _resized(features: Tensor, height: int, width: int) -> Tensor:
    if features.shape[-2:] == (height, width):
        return features
    return functional.interpolate(features, size=(height, width), mode="bilinear")
