"""The registered model as MLflow serves it, without microseg."""

from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow.models import Model

from microseg.errors import RegistryError
from microseg.models.config import CONFIG_FILE, WEIGHTS_FILE
from microseg.models.files import load_network
from microseg.registry.registry import Registry
from microseg.registry.serving import write_mlflow_model


def model_folder(registry: Registry, version: int) -> Path:
    """The files of a version's logged model, without `Registry`."""
    client = mlflow.MlflowClient(tracking_uri=registry.tracking_uri, registry_uri=registry.tracking_uri)
    uri = client.get_model_version_download_uri("microseg-segmenter", str(version))
    return Path(mlflow.artifacts.download_artifacts(uri))


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_served_probabilities_equal_those_of_the_network(
    registry: Registry, demo, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    served = mlflow.pyfunc.load_model(str(model_folder(registry, 1)))
    tiles = np.random.default_rng(batch).random((batch, 3, 32, 32), dtype=np.float32)
    network = load_network(demo.networks[0])
    with torch.inference_mode():
        expected = network(torch.from_numpy(tiles)).softmax(dim=1).numpy()
    given = served.predict(tiles)
    assert given.shape == (batch, 2, 32, 32)
    assert given.dtype == np.float32
    np.testing.assert_allclose(given, expected, atol=1e-4)


def test_model_files_contain_no_pickle(registry: Registry) -> None:
    names = {path.name for path in model_folder(registry, 1).rglob("*") if path.is_file()}
    assert {"model.pt2", WEIGHTS_FILE, CONFIG_FILE, "model_card.md", "MLmodel", "requirements.txt"} <= names
    assert not {name for name in names if name.endswith((".pkl", ".pth", ".pt", ".py"))}


def test_signature(registry: Registry) -> None:
    signature = Model.load(str(model_folder(registry, 1))).signature
    assert [(spec.type, spec.shape) for spec in signature.inputs.inputs] == [(np.dtype("float32"), (-1, 3, 32, 32))]
    [output] = signature.outputs.inputs
    assert (output.name, output.shape) == ("probabilities", (-1, 2, 32, 32))


def test_served_model_rejects_wrong_tiles(registry: Registry) -> None:
    served = mlflow.pyfunc.load_model(str(model_folder(registry, 1)))
    with pytest.raises(mlflow.MlflowException, match="shape"):
        served.predict(np.zeros((1, 3, 16, 16), dtype=np.float32))


@pytest.mark.parametrize(
    "example",
    [np.zeros((32, 16, 3), np.uint8), np.zeros((32, 32), np.uint8), np.zeros((32, 32, 3), np.float32)],
    ids=["not square", "gray", "float"],
)
def test_rejects_an_example_that_is_no_tile(tmp_path: Path, demo, example: np.ndarray) -> None:
    folder = demo.networks[0]
    with pytest.raises(RegistryError, match=r"square RGB tile, uint8 \(T, T, 3\)"):
        write_mlflow_model(tmp_path / "model", Model(), load_network(folder), folder, example, "card")


def test_rejects_a_graph_that_differs_from_the_network(tmp_path: Path, demo, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = demo.networks[0]
    network = load_network(folder)
    real = torch.export.load

    def spoil(path: Path) -> torch.export.ExportedProgram:
        with torch.no_grad():
            network.head.classify.bias.add_(torch.tensor([0.0, 1.0]))  # after the export
        return real(path)

    monkeypatch.setattr(torch.export, "load", spoil)
    example = demo.example
    with pytest.raises(RegistryError, match="they differ by up to"):
        write_mlflow_model(tmp_path / "model", Model(), network, folder, example, "card")
