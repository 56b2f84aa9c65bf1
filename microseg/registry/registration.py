"""From a trained network's folder to the next version of the registered model."""

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from microseg.models.config import NetworkConfig
from microseg.registry.connection import is_server
from microseg.registry.run import logged_datasets
from microseg.registry.version import CANDIDATE, DATASET_TAG, MODEL_ID_TAG, MODEL_NAME, NOTE_TAG, PREVIOUS, PRODUCTION

__all__ = ["fit_description", "headline", "register_network"]

_DESCRIPTION_CHARACTERS = 5000  # what MLflow's database column takes

_MODEL_DESCRIPTION = (
    f"Segments histopathology images. The version with the alias `{PRODUCTION}` is in use, `{CANDIDATE}` is proposed, "
    f"`{PREVIOUS}` is the one to go back to. To promote a version by hand, add `{PRODUCTION}` to its aliases; the "
    "button *Promote model* does something else: it copies a version to another model."
)


def register_network(
    client: MlflowClient,
    experiment_id: str,
    run_id: str,
    folder: Path,
    *,
    example: npt.NDArray[np.uint8],
    method: str,
    commit: str | None,
    description: str,
    tags: Mapping[str, str],
) -> int:
    """Log a network's files and served form, and make them the next version.

    Written with the client alone: MLflow's fluent ``log_model`` goes to the process-wide server and run.

    Args:
        client: Where to.
        experiment_id: The run's experiment.
        run_id: The run that trained it; its logged datasets become the version's.
        folder: Written by `microseg.models.files.save_network`.
        example: A tile, (T, T, 3).
        method: How it was trained.
        commit: Of the code; None if unknown.
        description: The model card, in Markdown.
        tags: Further tags.

    Returns:
        The version's number.

    Raises:
        WeightsError: The folder does not hold a network.
        RegistryError: The example does not fit.
    """
    from microseg.models.files import load_network
    from microseg.registry.serving import write_mlflow_model

    network = load_network(folder)
    run = client.get_run(run_id)
    datasets = logged_datasets(run)
    logged = client.create_logged_model(
        experiment_id,
        name=re.sub(r"[/:.%\"']", "-", run.info.run_name or method),  # the characters that MLflow refuses here
        source_run_id=run_id,
        tags={"method": method, NOTE_TAG: headline(description)},
        params=run.data.params,
        model_type="segmenter",
    )
    try:
        record = Model(artifact_path=logged.artifact_location, run_id=run_id, model_id=logged.model_id)
        with tempfile.TemporaryDirectory() as temporary:
            target = Path(temporary) / "model"
            write_mlflow_model(target, record, network, folder, example, description)
            client.log_model_artifacts(logged.model_id, str(target))
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    _ensure_registered_model(client)
    server = is_server(client.tracking_uri)
    created = client.create_model_version(
        MODEL_NAME,
        # by its model the interface links the version to its metrics; of a database MLflow would look the model up in
        # the process-wide one
        source=f"models:/{logged.model_id}" if server else logged.artifact_location,
        run_id=run_id,
        tags={**_facts(network.config, logged, datasets, method, commit), **tags},
        description=fit_description(description),
        model_id=logged.model_id,
    )
    if not server:  # which sets this tag itself; it links the model to its version
        link = json.dumps([{"name": MODEL_NAME, "version": str(created.version)}])
        client.set_logged_model_tags(logged.model_id, {"mlflow.modelVersions": link})
    return int(created.version)


def fit_description(card: str) -> str:
    """Cut a model card, at the end of a line, to what MLflow's description can hold."""
    if len(card) <= _DESCRIPTION_CHARACTERS:
        return card
    note = "\n\n(Cut here: the whole card is `model_card.md` among the files of this version.)"
    return re.sub(r"[^\n]*\Z", "", card[: _DESCRIPTION_CHARACTERS - len(note)]).rstrip() + note


def headline(card: str) -> str:
    """The first line of a model card, which is all that fits above a logged model's metrics."""
    return card.partition("\n")[0]


def _facts(
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


def _ensure_registered_model(client: MlflowClient) -> None:
    try:
        client.get_registered_model(MODEL_NAME)
    except MlflowException as missing:
        if missing.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        try:
            client.create_registered_model(MODEL_NAME, description=_MODEL_DESCRIPTION)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # it does when another process was quicker
                raise
