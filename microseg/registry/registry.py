"""The model registry: one MLflow server or database."""

from microseg.registry.connection import Connection
from microseg.registry.production import Production
from microseg.registry.runs import Runs
from microseg.registry.versions import Versions
from microseg.registry.webhooks import Webhooks

__all__ = ["Registry"]


class Registry:
    """Runs, model versions and production state of one MLflow server or database; it is opened at its first use.

    Args:
        tracking_uri: ``sqlite:////abs/mlflow.db`` or ``http(s)://…``.
        artifact_root: Where new experiments store their artifacts; see `Connection`.

    Attributes:
        versions: The versions of the registered model: find, register, download, tag, describe.
        production: Which version is in production: promote, roll back, history.
        runs: The runs that versions come from.
        webhooks: What an MLflow server reports of changed aliases.
    """

    def __init__(self, tracking_uri: str, *, artifact_root: str | None = None) -> None:
        self.tracking_uri = tracking_uri
        connection = Connection(tracking_uri, artifact_root)
        self.versions = Versions(connection)
        self.production = Production(connection, self.versions)
        self.runs = Runs(connection)
        self.webhooks = Webhooks(connection)
