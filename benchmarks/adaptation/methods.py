"""Compared methods by name: settings of the default method, or another adaptation method."""

from dataclasses import dataclass
from typing import Any

from benchmarks.adaptation.alternatives.fourier_style_mining import FourierStyleMining
from benchmarks.adaptation.alternatives.image_transfer import FourierTransfer, ReinhardTransfer
from benchmarks.adaptation.alternatives.mean_teacher import MaskedConsistency, MeanTeacher
from benchmarks.adaptation.alternatives.output_adversary import EntropyAdversary, OutputAdversary
from benchmarks.adaptation.alternatives.tent import Tent
from benchmarks.adaptation.alternatives.uncertain_pseudo_labels import UncertainPseudoLabels
from microseg.training.adaptation.method import AdaptationMethod

__all__ = ["ABLATIONS", "DEFAULT", "METHODS", "SOURCE_ONLY", "STATISTICS", "UPPER_BOUND", "Method"]

SOURCE_ONLY, UPPER_BOUND, STATISTICS, DEFAULT = "source_only", "upper_bound", "adabn", "default"


@dataclass(frozen=True)
class Method:
    """Difference of a method from ``default``.

    Attributes:
        changes: Settings that replace those of params.yaml.
        kind: Adaptation method, for `microseg.adapt`; None for that of params.yaml.
    """

    changes: dict[str, Any]
    kind: str | type[AdaptationMethod] | None = None


_PLAIN: dict[str, Any] = {
    "lambda_image": 0.0,
    "lambda_feature": 0.0,
    "source_color_jitter": 0.3,
    "color_transfer_prob": 0.0,
    "target_color_jitter": 0.0,
    "search_scale": False,
    "normalization": "running",
    "pseudo_label_weight": 0.0,
}
"""Further training on the source lab: the basis that each alternative adds one idea to."""

_STRONG_JITTER = _PLAIN | {"target_color_jitter": 0.7}

_SOURCE_FREE: dict[str, Any] = _PLAIN | {"source": "none"}
"""Without source images: the worker passes none."""

_LAMBDA = 0.05

METHODS: dict[str, Method] = {
    "image_level": Method(_PLAIN | {"lambda_image": _LAMBDA}),
    "feature_level": Method(_PLAIN | {"lambda_feature": _LAMBDA}),
    "dapnet": Method(_PLAIN | {"lambda_image": _LAMBDA, "lambda_feature": _LAMBDA}),
    "adaptsegnet": Method(_PLAIN, OutputAdversary),
    "advent": Method(_PLAIN, EntropyAdversary),
    "fda": Method(_PLAIN, FourierTransfer),
    "reinhard": Method(_PLAIN, ReinhardTransfer),
    "mean_teacher": Method(_STRONG_JITTER, MeanTeacher),
    "mic": Method(_STRONG_JITTER, MaskedConsistency),
    "tent": Method(_SOURCE_FREE, Tent),
    "sfda_fsm": Method(_SOURCE_FREE, FourierStyleMining),
    "upl_sfda": Method(_SOURCE_FREE, UncertainPseudoLabels),
    "source_free": Method({"source": "none"}),
    "color_transport": Method(_PLAIN | {"color_transfer_prob": 1.0}),
    DEFAULT: Method({}),
}

ABLATIONS: dict[str, Method] = {
    "without_adversaries": Method({"lambda_image": 0.0, "lambda_feature": 0.0}),
    "without_pseudo_labels": Method({"pseudo_label_weight": 0.0}),
    "without_region_rules": Method({"region_rules": False}),
    "without_color_cluster_voting": Method({"color_cluster_voting": False}),
    "without_color_aligned_tta": Method({"color_aligned_tta": False}),
    "without_pseudo_label_rounds": Method({"pseudo_label_rounds": 1}),
    "without_shared_statistics": Method({"normalization": "running"}),
    "without_color_transfer": Method({"color_transfer_prob": 0.0}),
    "without_strong_color_jitter": Method({"source_color_jitter": 0.3, "target_color_jitter": 0.3}),
    "without_scale_search": Method({"search_scale": False}),
}
"""``default`` without one of its components."""
