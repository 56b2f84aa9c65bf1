"""Runs, model versions, the promotion gate and the model card; the only package that knows MLflow."""

import os

# MLflow reads these when it is imported. What a user has set himself is kept.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # else: usage reports to its makers, from a clinical network
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # else: a bar for each file, in every log

from microseg.registry.card import CardLab, model_card
from microseg.registry.connection import is_server
from microseg.registry.gate import Decision, Evidence, GatePolicy, Interval, Reason, decide
from microseg.registry.history import Cause, Promotion
from microseg.registry.promotion import BY_TAG, REASON_TAG, Drift
from microseg.registry.report import GateReport, gate_report, gate_tags
from microseg.registry.run import RunLog
from microseg.registry.store import Registry
from microseg.registry.version import (
    CANDIDATE,
    EXPERIMENT,
    MODEL_NAME,
    PREVIOUS,
    PRODUCTION,
    ModelVersion,
    VersionRef,
    is_production,
    production_of,
)
from microseg.registry.webhook import AliasMoved, SignatureError, read_delivery

__all__ = [
    "BY_TAG",
    "CANDIDATE",
    "EXPERIMENT",
    "MODEL_NAME",
    "PREVIOUS",
    "PRODUCTION",
    "REASON_TAG",
    "AliasMoved",
    "CardLab",
    "Cause",
    "Decision",
    "Drift",
    "Evidence",
    "GatePolicy",
    "GateReport",
    "Interval",
    "ModelVersion",
    "Promotion",
    "Reason",
    "Registry",
    "RunLog",
    "SignatureError",
    "VersionRef",
    "decide",
    "gate_report",
    "gate_tags",
    "is_production",
    "is_server",
    "model_card",
    "production_of",
    "read_delivery",
]
