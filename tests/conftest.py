"""Two made labs with known truth, prepared as datasets, and a network small enough to train in a moment."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import microseg  # noqa: F401 (before PyTorch: it decides how the threads wait)
from microseg.datasets.dataset import LabDataset, open_lab_dataset
from microseg.datasets.ingest import ingest_lab
from microseg.synthetic.labs import LAB_A, LAB_B, make_lab

if TYPE_CHECKING:
    from microseg.models.config import NetworkConfig
    from microseg.models.network import PyramidSegmenter

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests' networks are too small to share among threads
for _name in ("MICROSEG_HOME", "MICROSEG_PARAMS", "MICROSEG_DVC_REMOTE", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
    os.environ.pop(_name, None)  # no test may work on the places and servers that a developer's shell names
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="microseg-tests-")  # read when Prefect is imported
atexit.register(shutil.rmtree, os.environ["PREFECT_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def deliveries(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A labelled lab and an unlabelled one as they are delivered, each with ``test/`` kept aside."""
    folder = tmp_path_factory.mktemp("deliveries")
    a = make_lab(folder / "lab_a", LAB_A, images=8, size=64, labelled=True, test_images=2, seed=0)
    b = make_lab(folder / "lab_b", LAB_B, images=6, size=64, labelled=False, test_images=2, seed=1)
    return a, b


@pytest.fixture(scope="session")
def labs(deliveries: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[LabDataset, LabDataset]:
    """The same two as datasets; not to be changed."""
    root = tmp_path_factory.mktemp("data")
    a, b = (open_lab_dataset(ingest_lab(it, root / "labs", root / "quarantine", seed=1).folder) for it in deliveries)
    return a, b


@pytest.fixture
def labelled_lab(labs: tuple[LabDataset, LabDataset]) -> LabDataset:
    """Labelled: 4 images of 64 px in train, 2 in val, 2 in test."""
    return labs[0]


@pytest.fixture
def new_lab(labs: tuple[LabDataset, LabDataset]) -> LabDataset:
    """Unlabelled: 6 images of 64 px."""
    return labs[1]


@pytest.fixture
def tiny_config() -> Callable[..., "NetworkConfig"]:
    """Makes the configuration of a network of two blocks."""
    from microseg.models.config import NetworkConfig

    def make(**values: Any) -> NetworkConfig:
        small: dict[str, Any] = {"encoder": "blocks", "channels": (4, 8), "pyramid_bins": (1, 2), "pyramid_channels": 4}
        return NetworkConfig(**{"classes": ("background", "gland"), "mpp": 1.0} | small | values)

    return make


@pytest.fixture
def tiny_network(tiny_config: Callable[..., "NetworkConfig"]) -> Callable[..., "PyramidSegmenter"]:
    """Makes such a network, with the random weights of a seed."""
    import torch

    from microseg.models.network import PyramidSegmenter

    def make(seed: int = 0, **values: Any) -> PyramidSegmenter:
        torch.manual_seed(seed)
        return PyramidSegmenter(tiny_config(**values))

    return make
