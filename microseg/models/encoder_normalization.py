"""Which inputs an encoder's pretrained weights expect; without PyTorch for the encoders that are named here."""

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "KNOWN_ENCODERS", "encoder_normalization", "timm_name"]

Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)

_IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
_INCEPTION = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

_KNOWN: Mapping[str, tuple[Triple, Triple]] = MappingProxyType(
    {
        "blocks": _IMAGENET,
        "resnet18": _IMAGENET,
        "resnet50": _IMAGENET,
        "vgg19": _IMAGENET,
        "tf_efficientnet_lite0": _INCEPTION,
    }
)

KNOWN_ENCODERS = tuple(_KNOWN)


def timm_name(encoder: str) -> str:
    """Name of an encoder in timm."""
    return "vgg19_bn" if encoder == "vgg19" else encoder


def encoder_normalization(encoder: str) -> tuple[Triple, Triple]:
    """Mean and standard deviation of the inputs that an encoder's pretrained weights expect, for inputs in 0..1."""
    if encoder in _KNOWN:
        return _KNOWN[encoder]
    import timm  # loads PyTorch: seconds, for encoders that are not in the table

    other = timm.get_pretrained_cfg(timm_name(encoder), allow_unregistered=True)
    if other is None:
        return _IMAGENET
    (r, g, b), (sr, sg, sb) = other.mean, other.std
    return (r, g, b), (sr, sg, sb)
