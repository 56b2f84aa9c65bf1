"""A trained network becomes a version of the registered model."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException

from microseg.files import file_sha256
from microseg.models.config import CONFIG_FILE, WEIGHTS_FILE, NetworkConfig
from microseg.registry.connection import is_server
from microseg.registry.model_card import fit_description
from microseg.registry.runs import logged_datasets
from microseg.registry.version import (
    CANDIDATE,
    DATASET_TAG,
    MODEL_ID_TAG,
    MODEL_NAME,
    PREVIOUS,
    PRODUCTION,
    file_tag,
)

if TYPE_CHECKING:
    from microseg.models.network import PyramidSegmenter

__all__ = ["code_commit", "register_version"]

_MODEL_DESCRIPTION = (
    f"Segments histopathology images. The version with the alias `{PRODUCTION}` is in use, `{CANDIDATE}-<lab>` is "
    f"proposed, `{PREVIOUS}` is the one to roll back to. To promote a version by hand, add `{PRODUCTION}` to its "
    "aliases; the button *Promote model* does something else: it copies a version to another model."
)


def register_version(
    client: MlflowClient,
    run_id: str,
    folder: Path,
    network: "PyramidSegmenter",
    example: npt.NDArray[np.uint8],
    *,
    method: str,
    description: str,
    commit: str | None,
    tags: Mapping[str, str] | None,
) -> int:
    """Register a network, and return the number of the version; see `Versions.register`."""
    from microseg.registry.serving import log_mlflow_model

    entry = client.get_run(run_id)
    logged = log_mlflow_model(client, entry, network, folder, example, method, description)
    datasets = logged_datasets(entry)
    _create_registered_model(client)
    server = is_server(client.tracking_uri)
    created = client.create_model_version(
        MODEL_NAME,
        # a server links the version to the logged model's metrics; with a database, MLflow would search the logged
        # model in the process-wide one
        source=f"models:/{logged.model_id}" if server else logged.artifact_location,
        run_id=run_id,
        tags={
            **_tags(network.config, logged, datasets, method, commit),
            **{file_tag(name): file_sha256(folder / name) for name in (WEIGHTS_FILE, CONFIG_FILE)},
            **(tags or {}),
        },
        description=fit_description(description),
        model_id=logged.model_id,
    )
    if not server:  # a server sets this tag itself: it links the logged model to its version
        link = json.dumps([{"name": MODEL_NAME, "version": str(created.version)}])
        client.set_logged_model_tags(logged.model_id, {"mlflow.modelVersions": link})
    return int(created.version)


def _tags(
    config: NetworkConfig, logged: LoggedModel, datasets: Mapping[str, str], method: str, commit: str | None
) -> dict[str, str]:
    return {
        "method": method,
        "labs": ", ".join(sorted(datasets)),
        "classes": ", ".join(config.classes),
        "mpp": "unknown" if config.mpp is None else f"{config.mpp:g}",
        "encoder": config.encoder,
        **{f"{DATASET_TAG}{lab}": digest for lab, digest in datasets.items()},
        "commit": commit or "unknown",
        MODEL_ID_TAG: logged.model_id,
    }


def _create_registered_model(client: MlflowClient) -> None:
    try:
        client.create_registered_model(MODEL_NAME, description=_MODEL_DESCRIPTION)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def code_commit(root: Path) -> str:
    """Git commit of the code in a folder.

    Args:
        root: Any folder of a Git checkout.

    Returns:
        The commit, followed by ``-dirty`` when a tracked file differs from it; ``unknown`` without Git, a
        checkout or a commit.
    """
    command = ["git", "-C", str(root), "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
