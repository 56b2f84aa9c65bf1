"""Runs, model versions, the promotion gate and the model card; the only package that knows MLflow."""

import os

import lazy_loader

# MLflow reads these when it is imported. What a user has set himself is kept.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # else: usage reports to its makers, from a clinical network
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # else: a bar for each file, in every log

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
