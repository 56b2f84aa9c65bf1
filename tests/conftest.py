"""Two synthetic labs, as incoming folders and as datasets, and a network that trains in seconds."""

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

import microseg  # noqa: F401 (before PyTorch: it sets how threads wait)
from microseg.datasets.dataset import LabDataset, open_lab_dataset
from microseg.datasets.ingest import ingest_lab
from microseg.synthetic.labs import LAB_A, LAB_B, generate_lab
from tests.distribution import GroupScheduling, rank
from tests.shared import made_once

if TYPE_CHECKING:
    from microseg.models.config import NetworkConfig
    from microseg.models.network import PyramidSegmenter
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests' networks are too small for several threads
for _name in ("MICROSEG_HOME", "MICROSEG_PARAMS", "MICROSEG_DVC_REMOTE", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
    os.environ.pop(_name, None)  # no test may use a developer's home or servers
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="microseg-tests-")  # read when Prefect is imported
atexit.register(shutil.rmtree, os.environ["PREFECT_HOME"], ignore_errors=True)

# The same examples in every run, so that a change is judged by what it changes; `make test-all` draws new ones. None
# fails because the machine is busy; and fixtures are shared by the examples of a test, which is what they are for.
_unchecked = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture]
hypothesis.settings.register_profile("default", derandomize=False, deadline=None, suppress_health_check=_unchecked)
hypothesis.settings.register_profile("repeatable", hypothesis.settings.get_profile("default"), derandomize=True)
hypothesis.settings.load_profile("repeatable")

gc.disable()  # while tests are collected: what is imported stays, and is not searched for garbage again and again


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: rank(item.nodeid.partition("::")[0]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: Any, log: Any) -> GroupScheduling | None:
    return GroupScheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture
def same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read in the process of the test, which has changed something that a child process does not have."""
    monkeypatch.setattr("microseg.limits.run_limited", lambda _what, function, *args, **_limits: function(*args))


@pytest.fixture(scope="session")
def incoming_labs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a labelled lab and of an unlabelled one, each with a held-out ``test/``."""
    folder = tmp_path_factory.mktemp("incoming")
    a = generate_lab(folder / "lab_a", LAB_A, images=8, size=64, labelled=True, test_images=2, seed=0)
    b = generate_lab(folder / "lab_b", LAB_B, images=6, size=64, labelled=False, test_images=2, seed=1)
    return a, b


@pytest.fixture(scope="session")
def labs(incoming_labs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[LabDataset, LabDataset]:
    """Datasets of the two labs; read-only."""
    root = tmp_path_factory.mktemp("data")
    a, b = (open_lab_dataset(ingest_lab(it, root / "labs", root / "quarantine", seed=1).folder) for it in incoming_labs)
    return a, b


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of MLflow: creating its tables takes ten seconds, copying it does not.

    Beside its folder: what its creation printed, and the folder in which it was created.
    """

    def make(folder: Path) -> None:
        from microseg.registry.registry import Registry

        (folder / "cwd").mkdir()
        with StringIO() as output:
            with redirect_stdout(output), redirect_stderr(output), chdir(folder / "cwd"):
                assert Registry(f"sqlite:///{folder / 'store' / 'mlflow.db'}").versions.all() == ()
            (folder / "output.txt").write_text(output.getvalue())

    return made_once(tmp_path_factory, "empty registry", make) / "store" / "mlflow.db"


@pytest.fixture
def source_lab(labs: tuple[LabDataset, LabDataset]) -> LabDataset:
    """Labelled lab: 4 images of 64 px in train, 2 in val, 2 in test."""
    return labs[0]


@pytest.fixture
def target_lab(labs: tuple[LabDataset, LabDataset]) -> LabDataset:
    """Unlabelled lab: 6 images of 64 px."""
    return labs[1]


@pytest.fixture
def tiny_config() -> Callable[..., "NetworkConfig"]:
    """Factory of configurations of a network with two blocks."""
    from microseg.models.config import NetworkConfig

    def make(**values: Any) -> NetworkConfig:
        small: dict[str, Any] = {"encoder": "blocks", "channels": (4, 8), "pyramid_bins": (1, 2), "pyramid_channels": 4}
        return NetworkConfig(**{"classes": ("background", "gland"), "mpp": 1.0} | small | values)

    return make


@pytest.fixture
def tiny_network(tiny_config: Callable[..., "NetworkConfig"]) -> Callable[..., "PyramidSegmenter"]:
    """Factory of networks with two blocks and the random weights of a seed."""
    import torch

    from microseg.models.network import PyramidSegmenter

    def make(seed: int = 0, **values: Any) -> PyramidSegmenter:
        torch.manual_seed(seed)
        return PyramidSegmenter(tiny_config(**values))

    return make
