from .boundary import assd, boundary_dice, hausdorff_95
from .drift import MIN_KNOWN, KnownImages, KnownLab, LabDrift, learn_lab, summarise_drift
from .drift_policy import DriftPolicy
from .label_free import (
    agreement,
    class_separation,
    class_shares,
    domain_separability,
    prediction_entropy,
)
from .objects import aggregated_jaccard, label_objects, object_dice, object_f1, object_hausdorff
from .overlap import (
    confusion_matrix,
    dice,
    dice_from_confusion,
    iou,
    iou_from_confusion,
    mean_dice,
)

__all__ = [
    "MIN_KNOWN",
    "DriftPolicy",
    "KnownImages",
    "KnownLab",
    "LabDrift",
    "aggregated_jaccard",
    "agreement",
    "assd",
    "boundary_dice",
    "class_separation",
    "class_shares",
    "confusion_matrix",
    "dice",
    "dice_from_confusion",
    "domain_separability",
    "hausdorff_95",
    "iou",
    "iou_from_confusion",
    "label_objects",
    "learn_lab",
    "mean_dice",
    "object_dice",
    "object_f1",
    "object_hausdorff",
    "prediction_entropy",
    "summarise_drift",
]
