from .config import IMAGENET_MEAN, IMAGENET_STD, NetworkConfig
from .domain import FeatureDomainClassifier, ImageDomainClassifier
from .files import CONFIG_FILE, WEIGHTS_FILE
from .network import Features, PyramidSegmenter
from .normalisation import KNOWN_ENCODERS, encoder_normalisation
from .probabilities import Probabilities
from .reversal import reverse_gradient
from .weights import (
    EncoderReport,
    load_encoder_weights,
    load_network,
    save_network,
    weights_digest,
)

__all__ = [
    "CONFIG_FILE",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "KNOWN_ENCODERS",
    "WEIGHTS_FILE",
    "EncoderReport",
    "FeatureDomainClassifier",
    "Features",
    "ImageDomainClassifier",
    "NetworkConfig",
    "Probabilities",
    "PyramidSegmenter",
    "encoder_normalisation",
    "load_encoder_weights",
    "load_network",
    "reverse_gradient",
    "save_network",
    "weights_digest",
]
