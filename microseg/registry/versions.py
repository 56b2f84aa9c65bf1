"""The versions of the registered model."""

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.entities.model_registry import ModelVersion as MlflowVersion
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException

from microseg.datasets.appearance import APPEARANCE_FEATURES
from microseg.errors import DataError, VersionNotFoundError
from microseg.models.reference_distribution import ReferenceDistribution
from microseg.parsing import parse_json, read_text
from microseg.registry.connection import Connection, all_pages
from microseg.registry.lookup import not_found_message, version_number
from microseg.registry.model_card import fit_description, headline
from microseg.registry.network_download import download_network
from microseg.registry.registration import register_version
from microseg.registry.runs import RunLog
from microseg.registry.version import (
    CARD_FILE,
    MODEL_NAME,
    NOTE_TAG,
    REFERENCE_FILE,
    TARGET_TAG,
    ModelVersion,
    VersionRef,
    read_version,
)

if TYPE_CHECKING:
    from microseg.models.network import PyramidSegmenter

__all__ = ["Versions"]

_log = logging.getLogger(__name__)

_REFERENCE_BYTES = 2**26
_PAGE = 20  # versions in a request for the newest ones


class Versions:
    """The versions of the registered model ``microseg-segmenter``.

    Args:
        connection: The connection to MLflow.
        active: Returns the active version of an alias of production; None if there is none.
    """

    def __init__(self, connection: Connection, active: Callable[[str], int | None]) -> None:
        self._connection, self._active = connection, active

    # ---- find

    def all(self) -> tuple[ModelVersion, ...]:
        """Return all versions, the newest first."""
        with self._connection.action("list versions") as client:
            model = _registered_model(client)
            found = [read_version(entry, model.aliases) for entry in _entries(client)] if model else []
        return tuple(sorted(found, key=lambda version: version.version, reverse=True))

    def adapted_to(self, lab: str) -> Iterator[ModelVersion]:
        """Yield the versions that were adapted to a lab, the newest first; they are requested when they are needed."""
        token: str | None = ""
        while token is not None:
            with self._connection.action("list versions") as client:
                model = _registered_model(client)
                page = client.search_model_versions(
                    f"name='{MODEL_NAME}' AND tags.{TARGET_TAG} = '{lab}'",
                    max_results=_PAGE,
                    order_by=["version_number DESC"],
                    page_token=token or None,
                )
                found = [read_version(entry, model.aliases) for entry in page] if model else []
            yield from found
            token = page.token or None

    def find(self, ref: VersionRef) -> ModelVersion:
        """Find a version by its alias or number.

        Args:
            ref: ``"production"``: the version that was validated and is active, which may differ from the one that has
                the alias in MLflow; ``"production-<lab>"`` likewise, if the lab has its own; ``"candidate-<lab>"``, or
                ``"candidate"`` if there is only one; ``"previous"``, another alias, ``3`` or ``"3"``. A `ModelVersion`
                is read again.

        Raises:
            VersionNotFoundError: There is no such version; the message lists the existing ones.
        """
        key = str(ref.version) if isinstance(ref, ModelVersion) else str(ref).strip()
        aliases = self.aliases()
        number = version_number(key, aliases, self._active)
        if number is not None and (version := self._get(number, aliases)) is not None:
            return version
        raise VersionNotFoundError(not_found_message(key, self.all(), aliases))

    def get(self, number: int) -> ModelVersion | None:
        """Return a version by its number; None if there is none."""
        return self._get(number, self.aliases())

    def _get(self, number: int, aliases: Mapping[str, str | int]) -> ModelVersion | None:
        with self._connection.action("find a version") as client:
            try:
                return read_version(client.get_model_version(MODEL_NAME, str(number)), aliases)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise

    def in_production_stage(self) -> tuple[int, ...]:
        """Return the versions in MLflow's legacy stage Production; none if MLflow has no stages any more."""
        with self._connection.action("list versions") as client:
            model = _registered_model(client)
            if model is None or not any(map(_in_production, model.latest_versions)):  # the latest of each stage
                return ()
            return tuple(int(entry.version) for entry in _entries(client) if _in_production(entry))

    # ---- register and download

    def register(
        self,
        run: RunLog,
        folder: Path,
        *,
        network: "PyramidSegmenter | None" = None,
        example: npt.NDArray[np.uint8],
        method: str,
        description: str,
        commit: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> ModelVersion:
        """Register a trained network as the next version, without alias and without a decision of the gate.

        The version's datasets are those logged with `RunLog.log_dataset`, so log them before. Written with the client
        alone: MLflow's fluent ``log_model`` uses the process-wide server and run.

        Args:
            run: The run that trained it.
            folder: Written by `microseg.models.files.save_network`.
            network: The network in that folder, where it is loaded already.
            example: A tile, (T, T, 3); the served model takes tiles of this size.
            method: Such as ``"supervised"`` or ``"dual_adaptive_pyramid"``.
            description: The model card, in Markdown.
            commit: Commit of the code; None if unknown.
            tags: Further tags.

        Returns:
            The new version.

        Raises:
            WeightsError: The folder does not hold a network.
            RegistryError: The example is not a tile, or MLflow refuses.
        """
        from microseg.models.files import load_network

        with self._connection.action("register a version") as client:
            loaded = network or load_network(folder)
            number = register_version(
                client,
                run.id,
                folder,
                loaded,
                example,
                method=method,
                description=description,
                commit=commit,
                tags=tags,
            )
        return self.find(number)

    def download(self, ref: VersionRef, cache: Path) -> Path:
        """Download the network of a version, unless it is in the cache; a damaged copy there is downloaded again.

        Args:
            ref: The version.
            cache: Folder with one folder for each downloaded version.

        Returns:
            A folder with ``weights.safetensors`` and ``network.json`` only, for `microseg.models.files.load_network`.

        Raises:
            VersionNotFoundError: There is no such version.
            RegistryError: The version has no such files, or the artifact store cannot be reached.
            WeightsError: The files in the artifact store are not those that were registered.
            NoSpaceError: The disk is full.
        """
        return download_network(self._connection, self.find(ref), cache)

    def reference_distribution(self, ref: VersionRef) -> ReferenceDistribution | None:
        """Return the reference distribution of the images that a version was trained on or adapted to.

        Returns:
            The distribution; None if it was not stored, or if it describes other image features than this microseg.
        """
        version = self.find(ref)
        with self._connection.action(f"read the reference distribution of version {version.version}") as client:
            if REFERENCE_FILE not in {file.path for file in client.list_artifacts(version.run_id)}:
                return None
            with tempfile.TemporaryDirectory() as folder:
                file = Path(client.download_artifacts(version.run_id, REFERENCE_FILE, folder))
                text = read_text(file, _REFERENCE_BYTES)
        try:
            reference = ReferenceDistribution.from_dict(parse_json(text))
        except DataError as error:
            _log.warning("The reference distribution of version %d is not used: %s", version.version, error)
            return None
        return reference if reference.features == APPEARANCE_FEATURES else None

    # ---- aliases, tags, model card, metrics

    def set_alias(self, alias: str, ref: VersionRef) -> ModelVersion:
        """Set an alias on a version; the version that had it loses it."""
        version = self.find(ref)
        with self._connection.action(f"set the alias {alias!r}") as client:
            client.set_registered_model_alias(MODEL_NAME, alias, str(version.version))
        return self.find(version)

    def remove_alias(self, alias: str) -> None:
        """Remove an alias, if a version has it."""
        if alias in self.aliases():
            with self._connection.action(f"remove the alias {alias!r}") as client:
                client.delete_registered_model_alias(MODEL_NAME, alias)

    def aliases(self) -> dict[str, int]:
        """Return the version of each alias."""
        with self._connection.action("list aliases") as client:
            model = _registered_model(client)
            return {alias: int(number) for alias, number in model.aliases.items()} if model else {}

    def set_tags(self, ref: VersionRef, tags: Mapping[str, str]) -> None:
        """Set or replace tags of a version."""
        version = self.find(ref)
        with self._connection.action("set tags") as client:
            for key, value in tags.items():
                client.set_model_version_tag(MODEL_NAME, str(version.version), key, value)

    def describe(self, ref: VersionRef, card: str) -> None:
        """Replace the model card of a version; the run stores it unabridged as ``model_card.md``.

        Args:
            ref: The version.
            card: The model card, in Markdown.
        """
        version = self.find(ref)
        with self._connection.action("describe a version") as client:
            client.update_model_version(MODEL_NAME, str(version.version), description=fit_description(card))
            if version.model_id is not None:
                client.set_logged_model_tags(version.model_id, {NOTE_TAG: headline(card)})
            client.log_text(version.run_id, card, CARD_FILE)

    def log_metrics(
        self, ref: VersionRef, metrics: Mapping[str, float], *, dataset: tuple[str, str] | None = None
    ) -> None:
        """Log metrics that MLflow shows on the model page of a version.

        Args:
            ref: The version.
            metrics: Names and values. Give each lab another name, such as ``dice/lab_a``: the run's table shows metrics
                by name only. Values that are not finite are left out; MLflow's model page would show them as 0.
            dataset: Lab and digest of the dataset that they were measured on.
        """
        version = self.find(ref)
        now = int(time.time() * 1000)
        lab, digest = dataset or (None, None)
        batch = [
            Metric(name, float(value), now, 0, version.model_id, lab, digest, version.run_id)
            for name, value in metrics.items()
            if isfinite(value)
        ]
        with self._connection.action("log metrics") as client:
            client.log_batch(version.run_id, metrics=batch, synchronous=True)


def _registered_model(client: MlflowClient) -> RegisteredModel | None:
    try:
        return client.get_registered_model(MODEL_NAME)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _in_production(entry: MlflowVersion) -> bool:
    return getattr(entry, "current_stage", None) == "Production"


def _entries(client: MlflowClient) -> list[MlflowVersion]:
    return all_pages(lambda token: client.search_model_versions(f"name='{MODEL_NAME}'", page_token=token))
