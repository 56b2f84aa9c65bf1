"""The model registry: one MLflow server or database."""

from collections.abc import Callable, Collection
from hashlib import sha256
from pathlib import Path

from microseg.registry.attachments import Attachments
from microseg.registry.connection import Connection
from microseg.registry.evidence_store import EvidenceStore
from microseg.registry.history import History
from microseg.registry.notes import OUTDATED, set_note
from microseg.registry.production import Production
from microseg.registry.production_store import MlflowStore
from microseg.registry.runs import Runs
from microseg.registry.version import ModelVersion
from microseg.registry.versions import Versions
from microseg.registry.webhooks import Webhooks

__all__ = ["Registry"]


class Registry:
    """Runs, model versions and production state of one MLflow server or database; it is opened at its first use.

    Args:
        tracking_uri: ``sqlite:////abs/mlflow.db`` or ``http(s)://…``.
        artifact_root: Where new experiments store their artifacts; see `Connection`.
        labs: Returns the labs that exist besides those in the registry; others have no alias ``production-<lab>``.
        locks: Folder of the files that tell whether the process of a run lives.
        snapshots: Folder of copies of the history, so that each process requests what is new only.

    Attributes:
        versions: The versions of the registered model: find, register, download, tag, describe.
        attachments: Files attached to versions, such as evaluation reports.
        evidence: Comparisons of versions.
        production: Which version is in production: promote, roll back, history.
        runs: The runs that versions come from.
        webhooks: What an MLflow server reports of changed aliases.
    """

    def __init__(
        self,
        tracking_uri: str,
        *,
        artifact_root: str | None = None,
        labs: Callable[[], Collection[str]] = tuple,
        locks: Path | None = None,
        snapshots: Path | None = None,
    ) -> None:
        self.tracking_uri = tracking_uri
        connection = Connection(tracking_uri, artifact_root)
        name = f"history-{sha256(tracking_uri.encode()).hexdigest()[:16]}.json"
        history = History(connection, None if snapshots is None else snapshots / name)
        self.versions = Versions(connection, lambda alias: history.state().of(alias).active)
        self.attachments = Attachments(connection, self.versions.find)
        self.production = Production(MlflowStore(connection, self.versions, history), self.versions.find, labs)
        self.evidence = EvidenceStore(connection)
        self.runs = Runs(connection, locks)
        self.webhooks = Webhooks(connection)
        self._connection = connection

    def mark_outdated(self, version: ModelVersion, reason: str) -> None:
        """State above the model card of a candidate why it should not be promoted any more."""
        set_note(self._connection, self.versions.find(version), OUTDATED, reason)
