from .devices import make_fabric, resolve_device
from .dual_adaptive import AdaptationBatch, DualAdaptive, reversal_strength
from .loop import Evaluate, FitResult, Hooks, fit
from .method import Losses, TrainingMethod
from .normalisation import (
    NormStatistics,
    measure_statistics,
    mix_statistics,
    read_statistics,
    write_statistics,
)
from .pseudo_labels import TargetLab
from .settings import AdaptSettings, FitSettings, TrainSettings
from .shift import LabShift, measure_shift
from .supervised import Supervised

__all__ = [
    "AdaptSettings",
    "AdaptationBatch",
    "DualAdaptive",
    "Evaluate",
    "FitResult",
    "FitSettings",
    "Hooks",
    "LabShift",
    "Losses",
    "NormStatistics",
    "Supervised",
    "TargetLab",
    "TrainSettings",
    "TrainingMethod",
    "fit",
    "make_fabric",
    "measure_shift",
    "measure_statistics",
    "mix_statistics",
    "read_statistics",
    "resolve_device",
    "reversal_strength",
    "write_statistics",
]
