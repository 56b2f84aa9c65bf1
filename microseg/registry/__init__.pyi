from .card import CardLab, model_card
from .connection import is_server
from .gate import Decision, Evidence, GatePolicy, Interval, Reason, decide
from .history import Cause, Promotion
from .promotion import BY_TAG, REASON_TAG, Drift
from .report import OVERRIDDEN, GateReport, gate_report, gate_tags
from .run import RunLog
from .store import Registry
from .version import (
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
from .webhook import AliasMoved, SignatureError, read_delivery

__all__ = [
    "BY_TAG",
    "CANDIDATE",
    "EXPERIMENT",
    "MODEL_NAME",
    "OVERRIDDEN",
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
