"""A version's network, fetched once."""

import os
import shutil
from pathlib import Path
from uuid import uuid4

from mlflow.artifacts import download_artifacts

from microseg.models.config import CONFIG_FILE, WEIGHTS_FILE
from microseg.registry.connection import Connection
from microseg.registry.version import EXTRA_FILES, MODEL_NAME, ModelVersion

__all__ = ["download_network"]


def download_network(connection: Connection, version: ModelVersion, cache: Path) -> Path:
    """Fetch a version's network, unless it was fetched before.

    Args:
        connection: Where it is registered.
        version: Which.
        cache: Holds one folder for each version fetched before.

    Returns:
        A folder with ``weights.safetensors`` and ``network.json`` only.

    Raises:
        RegistryError: The version holds no such files, or its storage cannot be reached.
    """
    # numbers alone are not unique across registries
    folder = cache / f"{MODEL_NAME}-{version.version}-{version.model_id or version.run_id}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    temporary = cache / f".download-{uuid4().hex}"
    temporary.mkdir()
    try:
        with connection.asking(f"give the files of version {version.version} (was it registered by microseg?)"):
            root = connection.client.get_model_version_download_uri(MODEL_NAME, str(version.version)).rstrip("/")
            for name in (WEIGHTS_FILE, CONFIG_FILE):
                download_artifacts(
                    artifact_uri=f"{root}/{EXTRA_FILES}/{name}",
                    dst_path=str(temporary),
                    tracking_uri=connection.tracking_uri,
                    registry_uri=connection.tracking_uri,
                )
        try:
            os.replace(temporary, folder)  # noqa: PTH105
        except OSError:
            if not folder.is_dir():  # else another process fetched it meanwhile
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
