"""Training: one step for each method, one loop, checkpoints."""

from microseg.training.devices import make_fabric, resolve_device
from microseg.training.dual_adaptive import AdaptationBatch, DualAdaptive, reversal_strength
from microseg.training.loop import Evaluate, FitResult, Hooks, fit
from microseg.training.method import Losses, TrainingMethod
from microseg.training.settings import AdaptSettings, FitSettings, TrainSettings
from microseg.training.statistics import estimate_statistics
from microseg.training.supervised import Supervised

__all__ = [
    "AdaptSettings",
    "AdaptationBatch",
    "DualAdaptive",
    "Evaluate",
    "FitResult",
    "FitSettings",
    "Hooks",
    "Losses",
    "Supervised",
    "TrainSettings",
    "TrainingMethod",
    "estimate_statistics",
    "fit",
    "make_fabric",
    "resolve_device",
    "reversal_strength",
]
