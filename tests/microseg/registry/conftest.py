"""An MLflow database with two registered versions, created once; each test works on a copy."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import numpy.typing as npt
import pytest
import torch

from microseg.models.config import NetworkConfig
from microseg.models.files import save_network
from microseg.models.network import PyramidSegmenter
from microseg.registry.registry import Registry

TILE = 32
DIGEST_A = "0123456789abcdef0123456789abcdef.dir"
DIGEST_B = "fedcba9876543210fedcba9876543210.dir"


def client_of(registry: Registry) -> mlflow.MlflowClient:
    """Another client of a registry's MLflow, such as a person's browser."""
    return mlflow.MlflowClient(tracking_uri=registry.tracking_uri, registry_uri=registry.tracking_uri)


@dataclass(frozen=True)
class TwoVersions:
    """A registry's database with version 1 (trained on lab_a) and version 2 (adapted to lab_b), without aliases."""

    database: Path
    networks: tuple[Path, Path]
    example: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Fresh:
    """A new database, the output of its creation, and the working folder of its creation."""

    database: Path
    output: str
    working_folder: Path


def make_network(folder: Path, *, seed: int, mpp: float | None = 0.5) -> Path:
    torch.manual_seed(seed)
    config = NetworkConfig(
        classes=("background", "gland"),
        encoder="blocks",
        channels=(4, 8),
        pyramid_bins=(1, 2),
        pyramid_channels=4,
        mpp=mpp,
    )
    save_network(folder, PyramidSegmenter(config))
    return folder


@pytest.fixture(scope="session")
def fresh(empty_registry: Path) -> Fresh:
    """Creating the tables takes seconds, so tests copy the file."""
    folder = empty_registry.parent.parent
    return Fresh(empty_registry, (folder / "output.txt").read_text(), folder / "cwd")


@pytest.fixture(scope="session")
def empty_database(fresh: Fresh) -> Path:
    return fresh.database


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> TwoVersions:
    folder = tmp_path_factory.mktemp("mlflow with a space")
    database = folder / "mlflow.db"
    shutil.copy(empty_database, database)
    registry = Registry(f"sqlite:///{database}")
    networks = (make_network(folder / "network-1", seed=1), make_network(folder / "network-2", seed=2, mpp=None))
    example = np.random.default_rng(0).integers(0, 256, (TILE, TILE, 3), dtype=np.uint8)
    with registry.runs.start("source lab_a", params={"epochs": 3}) as run:
        run.log_dataset("lab_a", DIGEST_A, "/data/lab_a.dvc", "source")
        registry.versions.register(
            run, networks[0], example=example, method="source", description="First.", commit="c0ffee"
        )
    with registry.runs.start("adapt lab_b") as run:
        run.log_dataset("lab_a", DIGEST_A, "/data/lab_a.dvc", "source")
        run.log_dataset("lab_b", DIGEST_B, "/data/lab_b.dvc", "target")
        run.log_dataset("lab_c", DIGEST_B, "/data/lab_c.dvc", "evaluation")
        registry.versions.register(
            run, networks[1], example=example, method="dual_adaptive_pyramid", description="Second.", tags={"why": "b"}
        )
    return TwoVersions(database, networks, example)


@pytest.fixture
def open_copy(tmp_path: Path) -> Callable[[Path], Registry]:
    def copy(database: Path) -> Registry:
        target = tmp_path / "store" / "mlflow.db"
        target.parent.mkdir()
        shutil.copy(database, target)
        return Registry(f"sqlite:///{target}")

    return copy


@pytest.fixture
def empty(open_copy: Callable[[Path], Registry], empty_database: Path) -> Registry:
    """An empty registry."""
    return open_copy(empty_database)


@pytest.fixture
def registry(open_copy: Callable[[Path], Registry], demo: TwoVersions) -> Registry:
    """A registry with two versions."""
    return open_copy(demo.database)
