"""What a version knows, kept as JSON with the run that made it."""

import json
import tempfile
from pathlib import Path

from mlflow import MlflowClient

from microseg.datasets.appearance import APPEARANCE_FEATURES
from microseg.errors import DataError
from microseg.models.reference_distribution import ReferenceDistribution

__all__ = ["REFERENCE_FILE", "read_reference_distribution"]

REFERENCE_FILE = "reference_distribution.json"


def read_reference_distribution(client: MlflowClient, run_id: str) -> ReferenceDistribution | None:
    """The images that a version knows; None where that was not kept, or is told by other figures than today's."""
    if REFERENCE_FILE not in {file.path for file in client.list_artifacts(run_id)}:
        return None
    with tempfile.TemporaryDirectory() as folder:
        values = json.loads(Path(client.download_artifacts(run_id, REFERENCE_FILE, folder)).read_text(encoding="utf-8"))
    try:
        reference = ReferenceDistribution.from_dict(values)
    except DataError:
        return None
    return reference if reference.figures == APPEARANCE_FEATURES else None
