"""Training: one step for each method, one loop, checkpoints."""

from microseg.training.devices import make_fabric, resolve_device
from microseg.training.dual_adaptive import AdaptationBatch, DualAdaptive, reversal_strength
from microseg.training.loop import Evaluate, FitResult, Hooks, fit
from microseg.training.method import Losses, TrainingMethod
from microseg.training.normalisation import (
    NormStatistics,
    measure_statistics,
    mix_statistics,
    read_statistics,
    write_statistics,
)
from microseg.training.pseudo_labels import TargetLab
from microseg.training.settings import AdaptSettings, FitSettings, TrainSettings
from microseg.training.shift import LabShift, measure_shift
from microseg.training.supervised import Supervised

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
