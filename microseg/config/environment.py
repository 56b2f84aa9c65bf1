"""The environment, and the places under microseg's home; the only reader of either.

Environment:
    MICROSEG_HOME: folder of all that microseg writes; ``./var`` by default.
    MICROSEG_PARAMS: file of parameters; ``params.yaml`` of the current folder, else of the checkout, by default.
    MICROSEG_DVC_REMOTE: where datasets are pushed, any DVC URL; a folder in the home by default.
    MLFLOW_TRACKING_URI: MLflow server; a SQLite file in the home by default.
    MICROSEG_BRIDGE_URL: where MLflow's server reaches the bridge, ``http://127.0.0.1:4280`` by default.
    MICROSEG_BRIDGE_HOST: what the bridge listens to, ``127.0.0.1`` by default; ``0.0.0.0`` for other machines.
    MICROSEG_WEBHOOK_SECRET: what MLflow's server signs with; one kept in the home by default.
    PREFECT_API_URL: Prefect server, read by Prefect; one for the time of the command by default.
"""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["Environment", "Home"]


class Environment(BaseSettings):
    """What the environment says; see the module. An empty variable says nothing."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    microseg_home: Path = Path("var")
    microseg_params: Path | None = None
    microseg_dvc_remote: str | None = None
    microseg_bridge_url: str = "http://127.0.0.1:4280"
    microseg_bridge_host: str = "127.0.0.1"
    microseg_webhook_secret: str | None = Field(None, repr=False)
    mlflow_tracking_uri: str | None = None

    @property
    def home(self) -> "Home":
        """The places in microseg's home."""
        return Home(self.microseg_home)

    @property
    def tracking_uri(self) -> str:
        """Of MLflow: the server that the environment names, else a file in the home."""
        return self.mlflow_tracking_uri or f"sqlite:///{self.home.mlflow / 'mlflow.db'}"

    @property
    def dvc_remote(self) -> str:
        """Where datasets are pushed: what the environment names, else a folder in the home."""
        return self.microseg_dvc_remote or str(self.home.root / "dvc-remote")


class Home:
    """The places in microseg's home.

    Args:
        root: the folder; made when something is written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.data = self.root / "data"
        self.labs = self.data / "labs"
        self.quarantine = self.data / "quarantine"
        self.incoming = self.root / "incoming"
        self.runs = self.root / "runs"
        self.models = self.root / "models"
        self.segmentations = self.root / "segmentations"
        self.records = self.root / "records"
        self.secrets = self.root / "secrets"
        self.demo = self.root / "demo"
        self.mlflow = self.root / "mlflow"
        self.prefect = self.root / "prefect"
