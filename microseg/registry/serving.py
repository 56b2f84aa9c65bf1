"""Export of a network as an MLflow model, which is served without pickle and without microseg's code."""

import re
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from mlflow import MlflowClient, pyfunc
from mlflow import pytorch as mlflow_pytorch
from mlflow.entities import LoggedModel, LoggedModelOutput, Run
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import Tensor, nn

from microseg.errors import RegistryError
from microseg.models.config import CONFIG_FILE, WEIGHTS_FILE
from microseg.models.export.post_processing import POST_PROCESSING_FILE, post_processing_code
from microseg.models.network import PyramidSegmenter, SoftmaxNetwork
from microseg.registry.model_card import headline
from microseg.registry.version import CARD_FILE, NOTE_TAG

__all__ = ["log_mlflow_model", "write_mlflow_model"]

_TOLERANCE = 1e-4


def log_mlflow_model(
    client: MlflowClient,
    run: Run,
    network: PyramidSegmenter,
    source: Path,
    example: npt.NDArray[np.uint8],
    method: str,
    card: str,
) -> LoggedModel:
    """Export a network and log it as a model of a run.

    Args:
        client: MLflow's client.
        run: The run that trained the network.
        network: The network, in evaluation mode, on the CPU.
        source: Folder that the network was loaded from.
        example: A tile, (T, T, 3).
        method: Training method.
        card: The model card, in Markdown.

    Returns:
        MLflow's entity of the logged model; its status is FAILED if the export fails.

    Raises:
        RegistryError: See `write_mlflow_model`.
    """
    logged = client.create_logged_model(
        run.info.experiment_id,
        name=re.sub(r"[/:.%\"']", "-", run.info.run_name or method),  # MLflow refuses these characters
        source_run_id=run.info.run_id,
        tags={"method": method, NOTE_TAG: headline(card)},
        params=run.data.params,
        model_type="segmenter",
    )
    try:
        model = Model(artifact_path=logged.artifact_location, run_id=run.info.run_id, model_id=logged.model_id)
        with tempfile.TemporaryDirectory() as folder:
            write_mlflow_model(Path(folder) / "model", model, network, source, example, card)
            client.log_model_artifacts(logged.model_id, str(Path(folder) / "model"))
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run.info.run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return logged


def write_mlflow_model(
    folder: Path, model: Model, network: PyramidSegmenter, source: Path, example: npt.NDArray[np.uint8], card: str
) -> None:
    """Write an MLflow model that predicts the class probabilities of the network.

    ``data/model.pt2`` is the exported graph, for `mlflow models serve` and ``pyfunc``; ``extra_files/`` has the two
    files of the network, for microseg, the model card, and, where it separates instances, the code for that.

    Args:
        folder: Folder of the model; must not exist.
        model: MLflow's metadata of the model.
        network: The network, in evaluation mode, on the CPU.
        source: Folder that the network was loaded from.
        example: A tile, (T, T, 3); the served model takes tiles of this size.
        card: The model card, in Markdown.

    Raises:
        RegistryError: The example is not a square RGB tile, or the exported graph differs from the network.
    """
    if example.ndim != 3 or example.shape[0] != example.shape[1] or example.shape[2] != 3 or example.dtype != np.uint8:
        raise RegistryError(
            f"expected a square RGB tile, uint8 (T, T, 3), as example, got {example.dtype} {example.shape}; "
            "give one tile at the size used in training"
        )
    served = SoftmaxNetwork(network).eval()
    tile = torch.from_numpy(np.array(example)).permute(2, 0, 1).unsqueeze(0).float() / 255  # (1, 3, T, T)
    batch = torch.cat([tile, tile.flip(-1)])  # (2, 3, T, T): a batch of one would be exported as a constant
    size, channels = example.shape[0], len(network.channels)
    signature = ModelSignature(
        # without a name: MLflow passes a named input as a dict, which its PyTorch models refuse
        inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, 3, size, size))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, channels, size, size), "probabilities")]),
    )
    card_file = folder.parent / CARD_FILE
    card_file.write_text(card, encoding="utf-8")
    extra_files = [str(source / WEIGHTS_FILE), str(source / CONFIG_FILE), str(card_file)]
    if network.config.instances:
        code = folder.parent / POST_PROCESSING_FILE
        code.write_text(post_processing_code(network.config), encoding="utf-8")
        extra_files.append(str(code))
    mlflow_pytorch.save_model(
        served,
        folder,
        mlflow_model=model,
        signature=signature,
        input_example=(batch,),
        extra_files=extra_files,
        pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],
        serialization_format="pt2",
    )
    # MLflow leaves this flavor out when the example is a tensor; an array would be stored as megabytes of JSON
    pyfunc.add_to_model(
        model,
        loader_module="mlflow.pytorch",
        data="data",
        conda_env="conda.yaml",
        python_env="python_env.yaml",
        model_config={"device": "cpu"},  # an exported graph stays on the device it was exported on
    )
    model.save(str(folder / "MLmodel"))
    _check_export(folder, served, tile)


def _check_export(folder: Path, served: nn.Module, tile: Tensor) -> None:
    graph = torch.export.load(folder / "data" / "model.pt2").module()
    with torch.inference_mode():
        difference = (graph(tile) - served(tile)).abs().max().item()
    if not difference <= _TOLERANCE:
        raise RegistryError(
            f"expected the exported graph to give the network's probabilities, they differ by up to {difference:.2g}; "
            "the network cannot be served: check that its forward pass does not depend on the values of its input"
        )
