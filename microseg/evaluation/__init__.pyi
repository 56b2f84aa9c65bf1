from .comparison import Comparison, compare
from .drift import image_drifts, learn_known
from .label_free import TargetImage, expected_foreground_share, lab_targets, label_free_scores
from .references import (
    Reference,
    Segment,
    bootstrap_interval,
    kept_aside,
    lab_references,
    mean_scores,
    score,
)

__all__ = [
    "Comparison",
    "Reference",
    "Segment",
    "TargetImage",
    "bootstrap_interval",
    "compare",
    "expected_foreground_share",
    "image_drifts",
    "kept_aside",
    "lab_references",
    "lab_targets",
    "label_free_scores",
    "learn_known",
    "mean_scores",
    "score",
]
