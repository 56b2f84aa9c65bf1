"""What a version knows, kept as JSON with the run that made it."""

import json
import tempfile
from pathlib import Path

from mlflow import MlflowClient

from microseg.data.appearance import APPEARANCE
from microseg.errors import DataError
from microseg.metrics import KnownImages

__all__ = ["KNOWN_FILE", "read_known"]

KNOWN_FILE = "known_images.json"


def read_known(client: MlflowClient, run_id: str) -> KnownImages | None:
    """The images that a version knows; None where that was not kept, or is told by other figures than today's."""
    if KNOWN_FILE not in {file.path for file in client.list_artifacts(run_id)}:
        return None
    with tempfile.TemporaryDirectory() as folder:
        values = json.loads(Path(client.download_artifacts(run_id, KNOWN_FILE, folder)).read_text(encoding="utf-8"))
    try:
        known = KnownImages.from_dict(values)
    except DataError:
        return None
    return known if known.figures == APPEARANCE else None
