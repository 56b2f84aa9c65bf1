"""MLflow runs: parameters, metrics, datasets and artifacts of a training, an adaptation or an evaluation."""

import getpass
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag

from microseg.errors import RegistryError
from microseg.escaping import mask_secrets
from microseg.models.reference_distribution import ReferenceDistribution
from microseg.registry.abandoned_runs import RunLocks
from microseg.registry.connection import Connection
from microseg.registry.version import EXPERIMENT, REFERENCE_FILE, TAG_LENGTH

__all__ = ["RunLog", "Runs", "logged_datasets"]

_log = logging.getLogger(__name__)

_PAUSE = 30.0  # seconds without metrics after MLflow refused some, or could not be reached

_CONTEXT_TAG = "mlflow.data.context"
_EVALUATION = "evaluation"


class Runs:
    """The runs of the experiment ``microseg``.

    Args:
        connection: The connection to MLflow.
        locks: Folder of the files that tell whether the process of a run lives; see `RunLocks`.
    """

    def __init__(self, connection: Connection, locks: Path | None = None) -> None:
        self._connection, self._locks = connection, RunLocks(connection, locks)
        self.end_abandoned = self._locks.end_abandoned

    @contextmanager
    def start(
        self, name: str, *, tags: Mapping[str, str] | None = None, params: Mapping[str, object] | None = None
    ) -> Iterator["RunLog"]:
        """Start a run, and end it as FINISHED, FAILED (an exception) or KILLED (an interruption).

        Args:
            name: Name in the user interface.
            tags: Tags of the run.
            params: Parameters of the run; may be nested.

        Yields:
            The log of the run.

        Raises:
            RegistryError: MLflow refuses or cannot be reached.
        """
        self.end_abandoned()
        with (
            self._locks.hold() as process,
            self._started(name, {**_origin(), **(tags or {}), **process}, params) as log,
        ):
            yield log

    @contextmanager
    def _started(self, name: str, tags: Mapping[str, str], params: Mapping[str, object] | None) -> Iterator["RunLog"]:
        experiment_id = self._connection.experiment(EXPERIMENT)
        with self._connection.action("start a run") as client:
            run_id = client.create_run(experiment_id, tags=dict(tags), run_name=name).info.run_id
        log = RunLog(self._connection, run_id)
        try:
            log.log_params(params or {})
            yield log
        except BaseException as error:
            self._end(log.id, "FAILED" if isinstance(error, Exception) else "KILLED", error)
            raise
        try:
            with self._connection.action("end a run") as client:
                client.set_terminated(log.id, "FINISHED")
        except RegistryError as error:  # what the run has made is stored
            _log.warning("The run %s remains marked as running: %s", log.id, error)

    def params(self, run_id: str) -> dict[str, str]:
        """Return the parameters and tags of a run."""
        with self._connection.action("read a run") as client:
            data = client.get_run(run_id).data
        return {**data.tags, **data.params}

    def was_interrupted(self, run_id: str, params: Mapping[str, object]) -> bool:
        """Whether a run with these parameters did not finish."""
        with self._connection.action("read a run") as client:
            run = client.get_run(run_id)
        same = all(run.data.params.get(name) == str(value) for name, value in _flatten(params))
        return same and run.info.status != "FINISHED"

    def finish(self, run_id: str) -> None:
        """Mark a run as finished whose process was killed after its result was stored."""
        with self._connection.action("end a run") as client:
            client.set_terminated(run_id, "FINISHED")

    def _end(self, run_id: str, status: str, error: BaseException) -> None:
        """Mark a run as ended by an error, which must reach the caller even if MLflow cannot be reached."""
        text, client = f"{type(error).__name__}: {error}"[:TAG_LENGTH], self._connection.client
        try:
            client.log_batch(run_id, tags=[RunTag("error", text)], synchronous=True)
            client.set_terminated(run_id, status)
        except Exception as fault:
            error.add_note(f"the run {run_id} could not be marked {status} in the registry: {fault}")


class RunLog:
    """Writes to one run; see `Runs.start`.

    Args:
        connection: The connection to MLflow.
        run_id: ID of the run.
    """

    def __init__(self, connection: Connection, run_id: str) -> None:
        self.id = run_id
        self._connection = connection
        self._paused_until, self._dropped = 0.0, 0

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics in one request, written when this returns.

        Metrics only show the work: where they cannot be written they are left out with a warning, and none are tried
        for some time, so that an MLflow that is away does not delay a training.

        Args:
            metrics: Names (letters, digits, ``_-. :/``) and values; NaN is logged as NaN.
            step: Such as the training step.
        """
        now = int(time.time() * 1000)
        batch = [Metric(name, float(value), now, step) for name, value in metrics.items()]
        self._show("log metrics", lambda client: client.log_batch(self.id, metrics=batch, synchronous=True))

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log parameters; nested ones are named ``outer.inner``.

        Args:
            params: Names and values. A parameter cannot be logged twice with different values.
        """
        batch = [Param(name, str(value)) for name, value in _flatten(params)]
        with self._connection.action("log params") as client:
            client.log_batch(self.id, params=batch, synchronous=True)

    def log_dataset(self, lab: str, digest: str, uri: str, context: str) -> None:
        """Log a lab's dataset as an input of the run.

        Args:
            lab: Name of the lab.
            digest: DVC's hash of the dataset (``<md5>.dir``).
            uri: Where this version is stored, such as the DVC remote or the path of the lab's ``.dvc`` file.
            context: Use of the dataset, such as ``"source"``, ``"target"`` or ``"evaluation"``. Labs used only for
                evaluation are not among the datasets of a registered version.
        """
        source = json.dumps({"uri": mask_secrets(uri), "lab": lab, "digest": digest})
        dataset = Dataset(name=lab, digest=digest, source_type="dvc", source=source)
        with self._connection.action("log a dataset") as client:
            client.log_inputs(self.id, datasets=[DatasetInput(dataset, [InputTag(_CONTEXT_TAG, context)])])

    def log_dict(self, content: Mapping[str, object], artifact_file: str) -> None:
        """Write a dictionary to the run's artifacts.

        Args:
            content: JSON values.
            artifact_file: Path among the artifacts, ending in ``.json`` or ``.yaml``.
        """
        with self._connection.action(f"store {artifact_file}") as client:
            client.log_dict(self.id, dict(content), artifact_file)

    def log_reference_distribution(self, reference: ReferenceDistribution) -> None:
        """Store the reference distribution of the images that the run's network was trained on or adapted to."""
        self.log_dict(reference.to_dict(), REFERENCE_FILE)

    def set_tag(self, key: str, value: str) -> None:
        """Set or replace a tag; like metrics, it is left out where it cannot be written."""
        self._show("set a tag", lambda client: client.set_tag(self.id, key, value, synchronous=True))

    def _show(self, action: str, write: Callable[[MlflowClient], object]) -> None:
        start = time.monotonic()
        if start < self._paused_until:
            self._dropped += 1
            return
        try:
            self._connection.check_reachable()  # MLflow's own calls retry an absent server for minutes
            with self._connection.action(action) as client:
                write(client)
        except RegistryError as error:
            self._paused_until = time.monotonic() + max(_PAUSE, 10 * (time.monotonic() - start))
            self._dropped += 1
            _log.warning("The work goes on, but the run %s lacks some of its metrics: %s", self.id, error)
        else:
            if self._dropped:
                _log.warning("The run %s is logged again; it lacks metrics of %d requests.", self.id, self._dropped)
                self._dropped = 0


def logged_datasets(run: Run) -> dict[str, str]:
    """Return the digest of every dataset that a run was trained with, by lab."""
    digests: dict[str, str] = {}
    for entry in run.inputs.dataset_inputs if run.inputs else ():
        if {tag.key: tag.value for tag in entry.tags}.get(_CONTEXT_TAG) != _EVALUATION:
            digests[entry.dataset.name] = entry.dataset.digest
    return digests


def _flatten(params: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _origin() -> dict[str, str]:
    """Tags that the user interface shows as creator and source."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user without a name
        user = "unknown"
    return {"mlflow.user": user, "mlflow.source.name": "microseg", "mlflow.source.type": "LOCAL"}
