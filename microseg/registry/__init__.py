"""Runs, model versions, the promotion gate and the model card; the only package that knows MLflow."""

import os

# MLflow reads these when it is imported. What a user has set himself is kept.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # else: usage reports to its makers, from a clinical network
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # else: a bar for each file, in every log

from microseg.registry.card import CardLab, model_card
from microseg.registry.gate import Decision, Evidence, GatePolicy, Interval, Reason, decide
from microseg.registry.run import RunLog
from microseg.registry.store import Registry
from microseg.registry.version import CANDIDATE, EXPERIMENT, MODEL_NAME, PREVIOUS, PRODUCTION, ModelVersion, VersionRef

__all__ = [
    "CANDIDATE",
    "EXPERIMENT",
    "MODEL_NAME",
    "PREVIOUS",
    "PRODUCTION",
    "CardLab",
    "Decision",
    "Evidence",
    "GatePolicy",
    "Interval",
    "ModelVersion",
    "Reason",
    "Registry",
    "RunLog",
    "VersionRef",
    "decide",
    "model_card",
]
