"""The dual-adaptive pyramid network: segmenter, domain classifiers, files."""

from microseg.model.config import IMAGENET_MEAN, IMAGENET_STD, NetworkConfig
from microseg.model.domain import FeatureDomainClassifier, ImageDomainClassifier
from microseg.model.encoders import KNOWN_ENCODERS, encoder_normalisation
from microseg.model.network import Features, PyramidSegmenter
from microseg.model.probabilities import Probabilities
from microseg.model.reversal import reverse_gradient
from microseg.model.weights import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    EncoderReport,
    load_encoder_weights,
    load_network,
    save_network,
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
]
