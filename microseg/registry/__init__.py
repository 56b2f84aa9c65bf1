"""Runs, model versions and promotions; the only package that imports MLflow."""

import os

# MLflow reads these when it is imported. Values set by the user are not changed.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # no usage reports from a clinical network
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # no progress bar per file in the logs
