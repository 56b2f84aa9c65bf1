"""The log of one run: params, metrics, datasets, figures."""

import getpass
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag

from microseg.models.reference_distribution import ReferenceDistribution
from microseg.registry.connection import registry_errors
from microseg.registry.reference_distribution import REFERENCE_FILE

__all__ = ["RunLog", "logged_datasets", "open_run"]

_CONTEXT_TAG = "mlflow.data.context"
_EVALUATION = "evaluation"
_TAG_CHARACTERS = 5000


class RunLog:
    """Writes to one run. Made by `Registry.run`.

    Args:
        client: Where the run lives.
        run_id: The run.
        name: Its name in the user interface.
        place: Address of the registry, for error messages.
    """

    def __init__(self, client: MlflowClient, run_id: str, name: str, place: str) -> None:
        self.id = run_id
        self.name = name
        self._client = client
        self._place = place

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log numbers in one request, written when this returns.

        Args:
            metrics: Names (letters, digits, ``_-. :/``) and values; NaN is kept as NaN.
            step: Such as the training step.
        """
        now = int(time.time() * 1000)
        batch = [Metric(name, float(value), now, step) for name, value in metrics.items()]
        with registry_errors(self._place, "log metrics"):
            self._client.log_batch(self.id, metrics=batch, synchronous=True)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log settings; nested ones are named ``outer.inner``.

        Args:
            params: A setting cannot be logged twice with different values.
        """
        batch = [Param(name, str(value)) for name, value in _flatten(params)]
        with registry_errors(self._place, "log params"):
            self._client.log_batch(self.id, params=batch, synchronous=True)

    def log_dataset(self, lab: str, digest: str, uri: str, context: str) -> None:
        """Log a lab's dataset as an input of the run.

        Args:
            lab: The lab's name.
            digest: DVC's hash of the dataset (``<md5>.dir``).
            uri: Where that version can be had from, such as the DVC remote or the path of the lab's ``.dvc`` file.
            context: What it was used for, such as ``"source"``, ``"target"`` or ``"evaluation"``. Labs used only for
                evaluation are not counted among those that a registered version was trained with.
        """
        source = json.dumps({"uri": uri, "lab": lab, "digest": digest})
        dataset = Dataset(name=lab, digest=digest, source_type="dvc", source=source)
        with registry_errors(self._place, "log a dataset"):
            self._client.log_inputs(self.id, datasets=[DatasetInput(dataset, [InputTag(_CONTEXT_TAG, context)])])

    def log_figure(self, path: Path, artifact_path: str = "figures") -> None:
        """Copy an image, or any file, to the run's artifacts.

        Args:
            path: The file.
            artifact_path: Folder among the artifacts.
        """
        with registry_errors(self._place, f"take {path.name}"):
            self._client.log_artifact(self.id, str(path), artifact_path)

    def log_dict(self, content: Mapping[str, object], artifact_file: str) -> None:
        """Write a record to the run's artifacts.

        Args:
            content: JSON-able.
            artifact_file: Path among the artifacts, ending in ``.json`` or ``.yaml``.
        """
        with registry_errors(self._place, f"take {artifact_file}"):
            self._client.log_dict(self.id, dict(content), artifact_file)

    def log_reference_distribution(self, reference: ReferenceDistribution) -> None:
        """Keep what the images look like that the run's network was trained on or adapted to."""
        self.log_dict(reference.to_dict(), REFERENCE_FILE)

    def set_tag(self, key: str, value: str) -> None:
        """Set or replace a tag."""
        with registry_errors(self._place, "set a tag"):
            self._client.set_tag(self.id, key, value, synchronous=True)


@contextmanager
def open_run(
    client: MlflowClient,
    experiment_id: str,
    name: str,
    *,
    tags: Mapping[str, str],
    params: Mapping[str, object],
    place: str,
) -> Iterator[RunLog]:
    """Start a run and end it as FINISHED, FAILED (an exception) or KILLED (an interruption).

    Args:
        client: Where the run goes.
        experiment_id: The experiment.
        name: Its name in the user interface.
        tags: Set at the start.
        params: Logged at the start; may be nested.
        place: Address of the registry, for error messages.
    """
    with registry_errors(place, "start a run"):
        started = client.create_run(experiment_id, tags={**_origin(), **tags}, run_name=name)
    log = RunLog(client, started.info.run_id, name, place)
    try:
        log.log_params(params)
        yield log
    except BaseException as error:
        _close(client, log.id, "FAILED" if isinstance(error, Exception) else "KILLED", error)
        raise
    with registry_errors(place, "end a run"):
        client.set_terminated(log.id, "FINISHED")


def logged_datasets(run: Run) -> dict[str, str]:
    """Lab → digest of every dataset that a run was trained with."""
    digests: dict[str, str] = {}
    for entry in run.inputs.dataset_inputs if run.inputs else ():
        if {tag.key: tag.value for tag in entry.tags}.get(_CONTEXT_TAG) != _EVALUATION:
            digests[entry.dataset.name] = entry.dataset.digest
    return digests


def _close(client: MlflowClient, run_id: str, status: str, error: BaseException) -> None:
    """Mark a run as ended by an error, which must reach the caller even when the registry is gone by now."""
    text = f"{type(error).__name__}: {error}"[:_TAG_CHARACTERS]
    try:
        client.log_batch(run_id, tags=[RunTag("error", text)], synchronous=True)
        client.set_terminated(run_id, status)
    except Exception as fault:
        error.add_note(f"the run {run_id} could not be marked {status} in the registry: {fault}")


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
