"""Files attached to versions, such as evaluation reports: artifacts of the runs that the versions come from."""

import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from microseg.files import atomic_write
from microseg.registry.connection import Connection, is_server
from microseg.registry.version import ModelVersion, VersionRef

__all__ = ["Attachments"]


class Attachments:
    """Files attached to versions.

    Args:
        connection: The connection to MLflow.
        find: Finds a version.
    """

    def __init__(self, connection: Connection, find: Callable[[VersionRef], ModelVersion]) -> None:
        self._connection, self._find = connection, find

    def add(self, ref: VersionRef, files: Sequence[Path], folder: str) -> None:
        """Attach files, such as an evaluation report, to a version.

        Args:
            ref: The version.
            files: Files or folders.
            folder: Folder among the artifacts of its run.
        """
        version = self._find(ref)
        for file in files:
            with self._connection.action(f"store {file.name}") as client:
                client.log_artifact(version.run_id, str(file), folder)

    def paths(self, ref: VersionRef, folder: str, suffix: str) -> list[str]:
        """Return the paths of the files in a folder, with a suffix; sorted."""
        version = self._find(ref)
        with self._connection.action("list files") as client:
            files = client.list_artifacts(version.run_id, folder)
        return sorted(file.path for file in files if file.path.endswith(suffix))

    def download(self, ref: VersionRef, path: str, target: Path) -> bool:
        """Copy a file to this machine.

        Args:
            ref: The version.
            path: Path of the file among the artifacts of its run.
            target: File to write.

        Returns:
            Whether there is such a file.
        """
        version = self._find(ref)
        with self._connection.action(f"read {path}") as client, tempfile.TemporaryDirectory() as folder:
            listed = client.list_artifacts(version.run_id, path.rpartition("/")[0])
            if path not in {file.path for file in listed}:
                return False
            file = client.download_artifacts(version.run_id, path, folder)
            with atomic_write(target) as part:
                shutil.copyfile(file, part)
        return True

    def page(self, ref: VersionRef, path: str) -> str | None:
        """URL of the page of MLflow that shows a file; None without a server."""
        version = self._find(ref)
        uri = self._connection.tracking_uri
        if not is_server(uri):
            return None
        return re.sub(r"(?<=://)[^/?#]*@", "", uri).rstrip("/") + "/" + self.link(version, path)

    def link(self, ref: VersionRef, path: str) -> str:
        """The same, relative to any page of MLflow."""
        version = self._find(ref)
        with self._connection.action("find the experiment") as client:
            experiment = client.get_run(version.run_id).info.experiment_id
        return f"#/experiments/{experiment}/runs/{version.run_id}/artifacts/{quote(path)}"
