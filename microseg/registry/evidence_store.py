"""The evidence on model versions, stored with them in MLflow; local copies are a cache."""

import hashlib
import tempfile
from pathlib import Path

from microseg.errors import RegistryError
from microseg.files import write_text_file
from microseg.registry.connection import Connection
from microseg.registry.evidence import EvidenceKey
from microseg.registry.version import MODEL_NAME, ModelVersion

__all__ = ["DECISION_PAGE", "EVIDENCE_FOLDER", "EvidenceStore"]

EVIDENCE_FOLDER = "evaluation"
"""Folder of evaluations among the artifacts of a version's run."""

DECISION_PAGE = f"{EVIDENCE_FOLDER}/decision.html"
"""The page that shows the decision on a version, among the artifacts of its run."""

_FILE = "comparison.json"
_TAG = "evidence."


class EvidenceStore:
    """Comparisons of versions, in MLflow.

    A comparison is an artifact of the candidate's run; a tag of the version, named by the hash of the `EvidenceKey`,
    holds the SHA-256 of its content. Without the tag, or with another content, there is no evidence.

    Args:
        connection: The connection to MLflow.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def write(self, version: ModelVersion, key: EvidenceKey, content: str) -> None:
        """Store a comparison with the candidate's version.

        Args:
            version: The candidate.
            key: What it was measured on.
            content: The comparison, as JSON.
        """
        with self._connection.action("store a comparison") as client:
            client.log_text(version.run_id, content, f"{EVIDENCE_FOLDER}/{key.digest}/{_FILE}")
            client.set_model_version_tag(MODEL_NAME, str(version.version), _TAG + key.digest, _sha256(content))

    def read(self, version: ModelVersion, key: EvidenceKey, cache: Path) -> str | None:
        """Return a comparison; None if these versions were not compared on exactly this.

        Args:
            version: The candidate, read from MLflow just now.
            key: What it was measured on.
            cache: File of the local copy; it is used if its content is the one in MLflow, and written otherwise.

        Raises:
            RegistryError: MLflow's copy is not the one that was stored.
        """
        expected = version.tags.get(_TAG + key.digest)
        if expected is None:
            return None
        if cache.is_file() and _sha256(content := cache.read_text("utf-8")) == expected:
            return content
        with (
            tempfile.TemporaryDirectory() as folder,
            self._connection.action(f"read the comparison of version {version.version}") as client,
        ):
            file = client.download_artifacts(version.run_id, f"{EVIDENCE_FOLDER}/{key.digest}/{_FILE}", folder)
            content = Path(file).read_text("utf-8")
        if _sha256(content) != expected:
            raise RegistryError(
                f"expected the comparison of version {version.version} as it was stored, its file "
                f"{EVIDENCE_FOLDER}/{key.digest}/{_FILE} has changed; run microseg evaluate {version.version} again"
            )
        write_text_file(cache, content)
        return content


def _sha256(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()
