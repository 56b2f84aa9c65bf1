"""The model registry and the log of runs: the only door to MLflow."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
from mlflow.entities import Metric

from microseg.errors import VersionNotFoundError
from microseg.models.reference_distribution import ReferenceDistribution
from microseg.registry import production
from microseg.registry.connection import Connection
from microseg.registry.download import download_network
from microseg.registry.history import HISTORY_EXPERIMENT, AuditInfo, Promotion, read_history
from microseg.registry.lookup import find_version, list_versions, registered_model
from microseg.registry.production import PendingAliasChange
from microseg.registry.reference_distribution import read_reference_distribution
from microseg.registry.registration import fit_description, headline, register_network
from microseg.registry.run import RunLog, open_run
from microseg.registry.version import (
    CARD_FILE,
    EXPERIMENT,
    MODEL_NAME,
    NOTE_TAG,
    PRODUCTION,
    ModelVersion,
    VersionRef,
    production_of,
)
from microseg.registry.webhooks import Webhooks

__all__ = ["Registry"]


class Registry:
    """Runs and model versions of one MLflow server or database. Opened at its first use.

    Args:
        tracking_uri: ``sqlite:////abs/mlflow.db`` or ``http(s)://…``.
        artifact_root: Where the artifacts of a new experiment go: a folder, or an address such as ``s3://…``. For an
            SQLite file the default is the folder ``artifacts`` beside it; a server decides itself.
    """

    def __init__(self, tracking_uri: str, *, artifact_root: str | None = None) -> None:
        self.tracking_uri = tracking_uri
        self._connection = Connection(tracking_uri, artifact_root)

    # ---- runs

    def run(
        self, name: str, *, tags: Mapping[str, str] | None = None, params: Mapping[str, object] | None = None
    ) -> AbstractContextManager[RunLog]:
        """A run, for a ``with`` block: FINISHED at its end, FAILED on an exception, KILLED when interrupted.

        Args:
            name: Shown in the user interface.
            tags: Set at the start.
            params: Settings, logged at the start; may be nested.

        Raises:
            RegistryError: The registry refuses or cannot be reached.
        """
        return open_run(
            self._connection.client,
            self._connection.experiment(EXPERIMENT),
            name,
            tags=tags or {},
            params=params or {},
            place=self.tracking_uri,
        )

    # ---- versions

    def register(
        self,
        run: RunLog,
        folder: Path,
        *,
        example: npt.NDArray[np.uint8],
        method: str,
        description: str,
        commit: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> ModelVersion:
        """Register a trained network as the next version, with neither alias nor judgment.

        The version's datasets are those logged to the run by `RunLog.log_dataset`, so log them before.

        Args:
            run: The run that trained it.
            folder: Written by `microseg.models.files.save_network`.
            example: A tile, (T, T, 3); the served form takes tiles of this size.
            method: Such as ``"source"`` or ``"dual_adaptive_pyramid"``.
            description: The model card, in Markdown.
            commit: Of the code, where known.
            tags: Further tags.

        Returns:
            The new version.

        Raises:
            WeightsError: The folder does not hold a network.
            RegistryError: The example does not fit, or the registry refuses.
        """
        with self._connection.asking("register a version"):
            number = register_network(
                self._connection.client,
                self._connection.experiment(EXPERIMENT),
                run.id,
                folder,
                example=example,
                method=method,
                commit=commit,
                description=description,
                tags=tags or {},
            )
        return self.resolve(number)

    def versions(self) -> tuple[ModelVersion, ...]:
        """All versions, the newest first."""
        with self._connection.asking("list versions"):
            return list_versions(self._connection.client)

    def resolve(self, ref: VersionRef) -> ModelVersion:
        """Find a version by its alias or number.

        Args:
            ref: ``"production"``, ``"candidate"``, ``"previous"``, another alias, ``3`` or ``"3"``; a `ModelVersion`
                is looked up anew. Where no version has the alias ``production``, one in MLflow's legacy stage
                Production is taken.

        Raises:
            VersionNotFoundError: There is no such version; the message lists those there are.
        """
        with self._connection.asking("look a version up"):
            return find_version(self._connection.client, ref)

    def download(self, ref: VersionRef, cache: Path) -> Path:
        """Fetch a version's network.

        Args:
            ref: Which version.
            cache: Holds one folder for each version fetched before.

        Returns:
            A folder with ``weights.safetensors`` and ``network.json`` only, for `microseg.models.files.load_network`.

        Raises:
            VersionNotFoundError: There is no such version.
            RegistryError: The version holds no such files, or its storage cannot be reached.
        """
        return download_network(self._connection, self.resolve(ref), cache)

    def reference_distribution(self, ref: VersionRef) -> ReferenceDistribution | None:
        """What the images look like that a version was trained on or adapted to; None where that was not kept."""
        version = self.resolve(ref)
        with self._connection.asking(f"give what version {version.version} knows"):
            return read_reference_distribution(self._connection.client, version.run_id)

    # ---- aliases

    def set_alias(self, alias: str, ref: VersionRef) -> ModelVersion:
        """Give a version an alias, taking it from whichever version had it."""
        version = self.resolve(ref)
        with self._connection.asking(f"set the alias {alias!r}"):
            self._connection.client.set_registered_model_alias(MODEL_NAME, alias, str(version.version))
        return self.resolve(version)

    def remove_alias(self, alias: str) -> None:
        """Take an alias away; nothing happens where no version has it."""
        with self._connection.asking(f"remove the alias {alias!r}"):
            model = registered_model(self._connection.client)
            if model is not None and alias in model.aliases:
                self._connection.client.delete_registered_model_alias(MODEL_NAME, alias)

    # ---- production: every change leaves an entry in the history

    def in_use(self, lab: str | None = None) -> ModelVersion:
        """The version for a lab's images: the lab's own, where it has one, else everyone's.

        Raises:
            VersionNotFoundError: There is neither.
        """
        if lab is not None:
            with suppress(VersionNotFoundError):
                return self.resolve(production_of(lab))
        return self.resolve(PRODUCTION)

    def promote(self, ref: VersionRef, *, alias: str = PRODUCTION, cause: AuditInfo | None = None) -> ModelVersion:
        """Put a version into production; the one in use becomes ``previous``.

        Nothing is judged here: ask `decide` first. Promoting the version in use changes nothing but removes its alias
        ``candidate``. A version that has the alias already, and is not in the history, gets its entry.

        Args:
            ref: Which version.
            alias: ``production``, or ``production-<lab>`` for one lab's images alone.
            cause: Why and by whom.

        Returns:
            The version, now in production.
        """
        with self._connection.asking("promote a version"):
            return production.promote(self._connection.client, self._history_id, ref, alias, cause or AuditInfo())

    def rollback(self, *, alias: str = PRODUCTION, cause: AuditInfo | None = None) -> ModelVersion | None:
        """Put ``previous`` back into production.

        Afterwards there is no ``previous``: rolling back twice would otherwise return to the faulty version.

        Args:
            alias: ``production``, or ``production-<lab>``. A lab's first own version has none before it: there the
                alias is taken away, and the lab uses everyone's version again.
            cause: Why and by whom.

        Returns:
            The version, in production again; None when a lab has no version of its own any more.

        Raises:
            VersionNotFoundError: There is no previous version.
        """
        with self._connection.asking("roll back"):
            return production.roll_back(self._connection.client, self._history_id, alias, cause or AuditInfo())

    def history(self, alias: str | None = None) -> tuple[Promotion, ...]:
        """All promotions, rollbacks and refusals, the newest first; of one alias only, where it is given."""
        with self._connection.asking("tell the history"):
            return read_history(self._connection.client, self._history_id, alias)

    def pending_changes(self) -> tuple[PendingAliasChange, ...]:
        """Aliases and legacy stages that somebody moved without microseg, and that nobody has looked at yet."""
        with self._connection.asking("compare aliases and history"):
            return production.pending_changes(self._connection.client, self._history_id)

    def revert(
        self, change: PendingAliasChange, refused: str, *, cause: AuditInfo | None = None
    ) -> ModelVersion | None:
        """Undo a promotion that somebody made by moving an alias or a legacy stage.

        Args:
            change: What was moved.
            refused: Why, as the first line of the description of the version asked for.
            cause: Why and by whom.

        Returns:
            The version in use; None when there was none before.
        """
        with self._connection.asking("put an alias back"):
            return production.revert(self._connection.client, self._history_id, change, cause or AuditInfo(), refused)

    def record_removal(self, change: PendingAliasChange, *, cause: AuditInfo | None = None) -> None:
        """Record that somebody removed an alias; the version that had it can be rolled back to."""
        with self._connection.asking("record a withdrawal"):
            production.record_removal(self._connection.client, self._history_id, change, cause or AuditInfo())

    @property
    def webhooks(self) -> Webhooks:
        """What the server tells of moved aliases, and whom."""
        return Webhooks(self._connection)

    # ---- what is learnt of a version later

    def set_tags(self, ref: VersionRef, tags: Mapping[str, str]) -> None:
        """Set or replace tags of a version."""
        version = self.resolve(ref)
        with self._connection.asking("set tags"):
            for key, value in tags.items():
                self._connection.client.set_model_version_tag(MODEL_NAME, str(version.version), key, value)

    def describe(self, ref: VersionRef, description: str) -> None:
        """Replace the model card of a version; the whole card also goes to its run as ``model_card.md``.

        Args:
            ref: Which version.
            description: The card, in Markdown.
        """
        version = self.resolve(ref)
        with self._connection.asking("describe a version"):
            self._connection.client.update_model_version(
                MODEL_NAME, str(version.version), description=fit_description(description)
            )
            if version.model_id is not None:
                self._connection.client.set_logged_model_tags(version.model_id, {NOTE_TAG: headline(description)})
            self._connection.client.log_text(version.run_id, description, CARD_FILE)

    def attach(self, ref: VersionRef, files: Sequence[Path], artifact_path: str) -> None:
        """Copy files, such as an evaluation report, to the run of a version.

        Args:
            ref: Which version.
            files: Files or folders.
            artifact_path: Folder among the run's artifacts.
        """
        version = self.resolve(ref)
        for file in files:
            with self._connection.asking(f"take {file.name}"):
                self._connection.client.log_artifact(version.run_id, str(file), artifact_path)

    def attached(self, ref: VersionRef, artifact_path: str, suffix: str) -> list[str]:
        """Paths of the files attached to the run of a version, below a folder and with a suffix; sorted."""
        version = self.resolve(ref)
        with self._connection.asking("list files"):
            files = self._connection.client.list_artifacts(version.run_id, artifact_path)
        return sorted(file.path for file in files if file.path.endswith(suffix))

    def log_metrics_for(
        self, ref: VersionRef, metrics: Mapping[str, float], *, dataset: tuple[str, str] | None = None
    ) -> None:
        """Log metrics that show on a version's model page.

        Args:
            ref: Which version.
            metrics: Names and values. Give each lab its own name, such as ``dice/lab_a``: the run's own table knows
                metrics by name only. Values that are not finite are left out; MLflow's model page would show them as 0.
            dataset: Lab and digest that they were measured on.
        """
        version = self.resolve(ref)
        now = int(time.time() * 1000)
        lab, digest = dataset or (None, None)
        batch = [
            Metric(name, float(value), now, 0, version.model_id, lab, digest, version.run_id)
            for name, value in metrics.items()
            if np.isfinite(value)
        ]
        with self._connection.asking("log metrics"):
            self._connection.client.log_batch(version.run_id, metrics=batch, synchronous=True)

    @property
    def _history_id(self) -> str:
        return self._connection.experiment(HISTORY_EXPERIMENT)
