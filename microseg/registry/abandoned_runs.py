"""Runs of processes that died: they would be RUNNING for ever.

A run holds a lock on a file of this machine as long as its process lives; the operating system releases it when the
process dies, however that happens. No clock and no process number is compared.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout
from mlflow import MlflowClient

from microseg.errors import MicrosegError
from microseg.locks import lock_file
from microseg.registry.connection import Connection
from microseg.registry.version import EXPERIMENT

__all__ = ["PROCESS_TAG", "RunLocks"]

PROCESS_TAG = "microseg.process"
"""Tag of a run that names its lock file."""

_log = logging.getLogger(__name__)


class RunLocks:
    """The lock files of the runs that processes of this home have started.

    Args:
        connection: The connection to MLflow.
        folder: Folder of the files; None: runs are not locked, and not found when their process dies.
    """

    def __init__(self, connection: Connection, folder: Path | None) -> None:
        self._connection = connection
        registry = hashlib.sha256(connection.tracking_uri.encode()).hexdigest()[:12]
        self._folder = None if folder is None else folder / registry

    @contextmanager
    def hold(self) -> Iterator[dict[str, str]]:
        """Hold a new lock in the block; yields the tags of the run."""
        if self._folder is None:
            yield {}
            return
        token = uuid4().hex
        file = self._folder / f"{token}.lock"
        with lock_file(file):
            yield {PROCESS_TAG: token}
            file.unlink(missing_ok=True)  # not after an error: the run may still be RUNNING

    def end_abandoned(self) -> list[str]:
        """Mark the runs of dead processes as KILLED, and the models that they were logging as FAILED.

        Returns:
            IDs of the runs. Where MLflow cannot be reached they are marked at the next call.
        """
        ended: list[str] = []
        for file in sorted(self._folder.glob("*.lock")) if self._folder is not None else ():
            try:
                with FileLock(file, timeout=0):
                    with self._connection.action("end the run of a dead process") as client:
                        ended += _end(client, self._connection.experiment(EXPERIMENT), file.stem)
                    file.unlink(missing_ok=True)
            except Timeout:  # its process lives
                continue
            except MicrosegError as error:
                _log.warning("The run of a process that died is not marked as ended yet: %s", error)
        return ended


def _end(client: MlflowClient, experiment_id: str, token: str) -> list[str]:
    condition = f"tags.`{PROCESS_TAG}` = '{token}' and attributes.status = 'RUNNING'"
    ended = []
    for run in client.search_runs([experiment_id], condition):
        run_id = run.info.run_id
        for model in client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'"):
            if str(model.status) in ("PENDING", "LoggedModelStatus.PENDING"):
                client.finalize_logged_model(model.model_id, "FAILED")
        client.set_tag(run_id, "error", "Its process died.")
        client.set_terminated(run_id, "KILLED")
        ended.append(run_id)
    return ended
