"""The files of a version's network, copied to this machine and compared with those that were registered."""

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from mlflow.artifacts import download_artifacts

from microseg.errors import ParseError, WeightsError
from microseg.files import disk_full_error, file_sha256
from microseg.models.config import CONFIG_FILE, WEIGHTS_FILE
from microseg.parsing import parse_json, read_text
from microseg.registry.connection import Connection
from microseg.registry.version import EXTRA_FILES, MODEL_NAME, ModelVersion, file_tag

__all__ = ["download_network"]

_log = logging.getLogger(__name__)


def download_network(connection: Connection, version: ModelVersion, cache: Path) -> Path:
    """Download the network of a version, unless it is in the cache; see `Versions.download`."""
    # version numbers are not unique across registries
    folder = cache / f"{MODEL_NAME}-{version.version}-{version.model_id or version.run_id}"
    if folder.is_dir():
        if not (fault := _file_fault(folder, version)):
            return folder
        _log.warning("%s is damaged and is downloaded again: %s", folder, fault)
    cache.mkdir(parents=True, exist_ok=True)
    temporary = cache / f".download-{uuid4().hex}"
    temporary.mkdir()
    uri = connection.tracking_uri
    try:
        with (
            disk_full_error(folder),
            connection.action(
                f"download the files of version {version.version} (was it registered by microseg?)"
            ) as client,
        ):
            root = client.get_model_version_download_uri(MODEL_NAME, str(version.version)).rstrip("/")
            for name in (WEIGHTS_FILE, CONFIG_FILE):
                file = f"{root}/{EXTRA_FILES}/{name}"
                download_artifacts(artifact_uri=file, dst_path=str(temporary), tracking_uri=uri, registry_uri=uri)
        if fault := _file_fault(temporary, version):
            raise WeightsError(
                f"expected the files that were registered as version {version.version}, the artifact store has "
                f"others: {fault}; restore them from a backup, or use another version"
            )
        _replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _file_fault(folder: Path, version: ModelVersion) -> str:
    """How the files of a network differ from those that were registered; empty where they do not."""
    try:
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            expected, found = version.tags.get(file_tag(name)), file_sha256(folder / name)
            if expected is None and name == WEIGHTS_FILE:  # registered by an older microseg
                expected = parse_json(read_text(folder / CONFIG_FILE))["weights_sha256"]
            if expected not in (None, found):
                return f"{name} has the SHA-256 {found}, expected {expected}"
    except (OSError, ParseError, KeyError, TypeError) as error:
        return str(error)
    return ""


def _replace_folder(new: Path, folder: Path) -> None:
    """Move a downloaded folder to its place, where a damaged one may be."""
    if folder.is_dir():
        damaged = folder.with_name(f".damaged-{uuid4().hex}")
        with suppress(FileNotFoundError):  # another process was quicker
            folder.rename(damaged)
        shutil.rmtree(damaged, ignore_errors=True)
    try:
        os.replace(new, folder)  # noqa: PTH105
    except OSError:
        if not folder.is_dir():  # otherwise another process downloaded it meanwhile
            raise
