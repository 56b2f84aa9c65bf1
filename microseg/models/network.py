"""The segmenter: encoder, pyramid pooling module, decoder, prediction head."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from microseg.config.training_params import ArchitectureSettings
from microseg.errors import ModelError
from microseg.models.config import NetworkConfig
from microseg.models.encoders import build_encoder
from microseg.models.heads import Head
from microseg.models.layers import PyramidDecoder, PyramidPooling
from microseg.plugins import load_plugin

__all__ = ["Features", "PyramidSegmenter", "SoftmaxNetwork", "configure_network"]


def configure_network(
    settings: ArchitectureSettings,
    classes: Sequence[str],
    mpp: float | None,
    *,
    smallest_instance: float = 0.0,
    inputs: Sequence[str] = (),
) -> NetworkConfig:
    """Configure a network for some classes and a pixel size, with the normalization that its encoder expects.

    Args:
        settings: The architecture.
        classes: Class names in order of their index, background first.
        mpp: Microns per pixel at which the network is trained; None if unknown.
        smallest_instance: Area below which there is no instance, in pixels at that scale.
        inputs: Names of the channels of its images; empty for gray and RGB images.
    """
    encoder = build_encoder(settings)
    architecture = {name: getattr(settings, name) for name in ArchitectureSettings.model_fields}
    return NetworkConfig(
        mean=encoder.mean,
        std=encoder.std,
        classes=tuple(classes),
        inputs=tuple(inputs),
        mpp=mpp,
        smallest_instance=smallest_instance,
        **architecture,
    )


class Features(NamedTuple):
    """Outputs of one forward pass that training uses.

    Attributes:
        logits: (B, K, H, W), prediction of the head at input size.
        pyramid: (B, pyramid_channels, h, w), output of the pyramid pooling module, for D_img.
        decoder: Outputs of Dn…D1, deepest first, for D_feat.
    """

    logits: Tensor
    pyramid: Tensor
    decoder: tuple[Tensor, ...]


class PyramidSegmenter(nn.Module):
    """The segmentation network of the dual-adaptive pyramid network, without its domain classifiers.

    Inputs of any size are padded to a multiple of the stride (by reflection, or by repeating the border where the image
    is too small for it), and the logits are cropped back.

    Args:
        config: The architecture.

    Attributes:
        config: The architecture.
        stride: Input pixels per location of the encoder's last output.
        pyramid_channels: Input channels of `ImageDomainClassifier`.
        decoder_channels: Channels of the decoder levels, deepest first: the input of `FeatureDomainClassifier`.
        channels: Names of the channels of the head's outputs: the classes, then its maps.

    Shape:
        (B, 3, H, W), float, in 0..1 → (B, P, H, W), the head's prediction: logits of the K classes, of further maps

    Raises:
        PluginError: No head has that name.
        ModelError: The encoder is unknown, ``decoder_channels`` have another number than its levels, the head cannot
            separate instances, or the input has another shape.

    Reference:
        Hou, Liu, et al., "Dual adaptive pyramid network for cross-stain histopathology image segmentation",
        MICCAI 2019, arXiv 1909.11524.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config)
        channels = self.encoder.channels
        self.pyramid_channels = config.pyramid_channels
        self.decoder_channels = config.decoder_channels or self.encoder.decoder_channels()
        self.stride = self.encoder.strides[-1]
        self.pyramid = PyramidPooling(channels[-1], config.pyramid_channels, config.pyramid_bins)
        self.decoder = PyramidDecoder(channels, config.pyramid_channels, self.decoder_channels)
        head_type: type[Head] = load_plugin("microseg.heads", config.head_in_use)
        if config.instances and "interior" not in head_type.maps:
            raise ModelError(
                f"expected a head that separates instances ({', '.join(config.instances)}), got {config.head_in_use}; "
                "set network.head to instance, or network.instances to []"
            )
        self.head = head_type(self.decoder_channels, len(config.classes))
        self.channels = (*config.classes, *head_type.maps)
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of each class at each pixel."""
        return self.features(x).logits

    def features(self, x: Tensor) -> Features:
        """Logits, and the features that the domain classifiers take."""
        self._check(x)
        height, width = x.shape[-2:]
        x = (x - self.mean) / self.std  # (B, 3, H, W)
        x = _pad_axis(_pad_axis(x, axis=-1, multiple=self.stride), axis=-2, multiple=self.stride)  # (B, 3, H', W')
        encoded = self.encoder(x)  # n maps, the i-th (B, channels[i], H'/strides[i], W'/strides[i])
        pyramid = self.pyramid(encoded[-1])  # (B, pyramid_channels, H'/stride, W'/stride)
        decoded = self.decoder(encoded, pyramid)  # n maps, deepest first
        scale = float(self.encoder.strides[0])
        logits = functional.interpolate(self.head(decoded), scale_factor=scale, mode="bilinear")  # (B, K, H', W')
        return Features(logits[..., :height, :width], pyramid, decoded)

    def _check(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] < 1 or x.shape[3] < 1 or not x.is_floating_point():
            raise ModelError(
                f"expected a float batch (B, 3, H, W) with values in 0..1, got {x.dtype} {tuple(x.shape)}; "
                "divide uint8 images by 255 and put channels second"
            )
        if self.training and x.shape[0] == 1 and max(x.shape[-2:]) <= self.stride:
            raise ModelError(
                f"expected more than one image, or one larger than {self.stride} px, to train on, "
                f"got one of {tuple(x.shape[-2:])}; batch normalization needs more than one value"
            )


class SoftmaxNetwork(nn.Module):
    """The network followed by the post-processing of its head, as other programs use it.

    The pyramid pooling module covers the whole tile, so an exported graph is for tiles of one size.

    Attributes:
        channels: Names of the output's channels: the classes, then the maps of the head.

    Shape:
        (B, 3, T, T), float32, in 0..1 → (B, K + M, T, T), probabilities and the head's maps
    """

    def __init__(self, network: PyramidSegmenter) -> None:
        super().__init__()
        self.network = network
        self.channels = network.channels

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities of each class at each pixel, and the head's maps."""
        return self.network.head.outputs(self.network(x))  # (B, K + M, T, T)


def _pad_axis(x: Tensor, *, axis: int, multiple: int) -> Tensor:
    """Pad the end of one axis to a multiple, by reflection where the axis is long enough for it."""
    size = x.shape[axis]
    missing = -size % multiple
    if missing == 0:
        return x
    widths = (0, missing, 0, 0) if axis == -1 else (0, 0, 0, missing)
    return functional.pad(x, widths, mode="reflect" if missing < size else "replicate")
