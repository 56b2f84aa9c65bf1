import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import tifffile

import microseg
from microseg.api import segmenter
from microseg.api.segmenter import Segmenter, version_provenance
from microseg.errors import DataError, SettingsError, VersionNotFoundError, WeightsError
from microseg.inference.engine import Engine
from microseg.models.files import save_network
from microseg.models.reference_distribution import ReferenceDistribution
from microseg.outputs.record import Provenance, read_record
from microseg.registry.version import ModelVersion
from microseg.slides.images import read_image, write_png


@pytest.fixture
def folder(tiny_network: Callable[..., Any], tmp_path: Path) -> Path:
    save_network(tmp_path / "network", tiny_network())
    return tmp_path / "network"


@pytest.fixture
def picture(tmp_path: Path) -> tuple[Path, npt.NDArray[np.uint8]]:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    write_png(tmp_path / "picture.png", pixels)
    return tmp_path / "picture.png", pixels


@pytest.mark.parametrize("as_text", [True, False])
def test_loads_network_from_a_folder(folder: Path, picture: tuple[Path, npt.NDArray[np.uint8]], as_text: bool) -> None:
    loaded = Segmenter.load(str(folder) if as_text else folder, device="cpu", tile=64, halo=8)
    assert loaded.classes == ("background", "gland")
    file, pixels = picture
    found = loaded.segment(pixels, mpp=0.5)
    assert found.mask.shape == (40, 56)
    assert found.probabilities is not None
    assert found.probabilities.shape == (2, 40, 56)
    np.testing.assert_array_equal(found.mask, found.probabilities.argmax(0))
    assert (found.mpp, found.source, found.classes) == (0.5, "array", loaded.classes)
    assert found.seconds is not None
    from_file = loaded.segment(file, mpp=0.5)
    np.testing.assert_array_equal(from_file.mask, found.mask)
    assert from_file.source.endswith("picture.png")
    np.testing.assert_array_equal(loaded.segment(str(file), mpp=0.5).mask, found.mask)


def test_computes_the_probabilities_of_the_engine(
    tiny_network: Callable[..., Any], picture: tuple[Path, npt.NDArray[np.uint8]]
) -> None:
    mine, engine = Segmenter(tiny_network(), device="cpu"), Engine(tiny_network())
    found = mine.segment(picture[1], mpp=0.7).probabilities
    np.testing.assert_array_equal(found, engine.probabilities(picture[1], 0.7))  # type: ignore[arg-type]
    np.testing.assert_array_equal(read_image(picture[0]), picture[1])


def test_results_have_provenance(tiny_network: Callable[..., Any], folder: Path) -> None:
    given = Provenance(model="mine", inference={"note": "x", "tile": 1})
    mine = Segmenter(tiny_network(), provenance=given, device="cpu", tile=128, halo=16)
    assert mine.provenance.model == "mine"
    assert mine.provenance.inference == {"note": "x"} | mine.engine.parameters
    assert mine.provenance.inference["tile"] == 128
    assert mine.provenance.weights_sha256 == mine.engine.weights_sha256
    assert Segmenter(tiny_network(), device="cpu").provenance.model == "unregistered"
    assert Segmenter.load(folder, device="cpu").provenance.model == str(folder)


def test_rejects_unknown_folders(tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"Expected a folder with a network at .*nowhere, found none: check the path"
    ):
        Segmenter.load(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match="found none: check the path"):
        Segmenter.load("models/nowhere")
    with pytest.raises(WeightsError, match=r"network\.json"):
        Segmenter.load(tmp_path)


def test_rejects_unknown_devices(folder: Path) -> None:
    with pytest.raises(SettingsError, match="Expected device cpu, cuda, mps or auto, got 'tpu'"):
        Segmenter.load(folder, device="tpu")


class FakeRegistry:
    """A registry with one version and one alias."""

    asked: list[Any] = []  # noqa: RUF012
    folder: Path

    def __init__(self, tracking_uri: str) -> None:
        self.asked.append(tracking_uri)

    @property
    def versions(self) -> "FakeRegistry":
        return self

    def find(self, model: str | int) -> ModelVersion:
        if model != "production":
            raise VersionNotFoundError(f"no {model}")
        tags = {"commit": "c0ffee", "method": "supervised", "base_version": "2", "classes": "a,b"}
        return ModelVersion(3, "r1", None, ("production",), tags, {"lab_a": "0a.dir"}, datetime.now(UTC), "")

    def download(self, version: ModelVersion, models: Path) -> Path:
        self.asked.append(models)
        return self.folder

    def reference_distribution(self, version: ModelVersion) -> ReferenceDistribution:
        assert version.version == 3
        return ReferenceDistribution(("a",), {})


def test_loads_version_from_the_registry(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microseg.registry.registry.Registry", FakeRegistry)
    monkeypatch.setattr(FakeRegistry, "folder", folder, raising=False)
    monkeypatch.setattr(FakeRegistry, "asked", [])
    monkeypatch.setenv("MICROSEG_HOME", str(tmp_path / "home"))
    loaded = Segmenter.load(device="cpu")
    assert FakeRegistry.asked == [f"sqlite:///{tmp_path}/home/mlflow/mlflow.db", tmp_path / "home" / "models"]
    assert loaded.provenance.model == "microseg-segmenter/3"
    assert (loaded.provenance.run_id, loaded.provenance.commit) == ("r1", "c0ffee")
    assert loaded.provenance.datasets == {"lab_a": "0a.dir"}
    assert loaded.provenance.parameters == {"method": "supervised", "base_version": "2"}
    Segmenter.load("production", tracking_uri="https://mlflow", device="cpu")
    assert FakeRegistry.asked[2] == "https://mlflow"
    with pytest.raises(VersionNotFoundError):
        Segmenter.load("staging", device="cpu")


def test_version_provenance_names_the_version() -> None:
    version = FakeRegistry("").find("production")
    assert version_provenance(version).model == "microseg-segmenter/3"


def test_package_offers_the_python_api() -> None:
    from microseg import adapt
    from microseg.api.training import adapt as same

    assert microseg.Segmenter is Segmenter
    assert adapt is same
    with pytest.raises(AttributeError, match=r"no attribute 'segment'; it has Segmenter, adapt"):
        microseg.segment  # noqa: B018


def test_importing_the_package_imports_no_heavy_modules() -> None:
    code = "import sys, microseg; print(sorted({'torch', 'mlflow', 'numpy', 'pydantic'} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "[]"


def test_segments_slide_in_memory_and_to_files(
    tiny_network: Callable[..., Any],
    picture: tuple[Path, npt.NDArray[np.uint8]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(segmenter, "is_slide", lambda path, megapixels: True)
    file, pixels = picture
    mine = Segmenter(tiny_network(), device="cpu", tile=32, halo=4)
    found = mine.segment(file, mpp=0.5)  # the model's is 1: half the size
    assert (found.mask.shape, found.step, found.mpp, found.probabilities) == ((20, 28), (2.0, 2.0), 0.5, None)
    same = mine.segment(file, mpp=1.0)
    np.testing.assert_array_equal(same.mask, mine.segment(pixels, mpp=1.0).mask)
    summary = mine.segment_to(file, tmp_path / "out", mpp=1.0, outputs=["labels"])
    assert (summary.done, summary.failed) == (1, 0)
    assert mine.segment_to([str(file)], tmp_path / "out", mpp=1.0, outputs=["labels"]).skipped == 1


def test_channels_of_files_are_those_that_the_network_takes(tiny_network: Callable[..., Any], tmp_path: Path) -> None:
    network = tiny_network()
    network.config = network.config.model_copy(update={"inputs": ("nuclei", "membrane")})
    mine = Segmenter(network, device="cpu")
    planes = np.random.default_rng(0).integers(0, 256, (4, 40, 56), dtype=np.uint8)
    file, size = tmp_path / "a.tif", {"resolution": (2e4, 2e4), "resolutionunit": 3}
    tifffile.imwrite(file, planes, photometric="minisblack", planarconfig="separate", **size)
    channels = {"nuclei": 3, "membrane": [1, 4]}
    found = mine.segment(file, channels=channels)
    pixels = np.stack([planes[2], planes[[0, 3]].max(0), np.zeros_like(planes[0])], axis=2)
    np.testing.assert_array_equal(found.probabilities, mine.segment(pixels, mpp=0.5).probabilities)
    assert found.provenance.inference["channels"] == [["nuclei", [3], []], ["membrane", [1, 4], []]]
    summary = mine.segment_to(
        file, tmp_path / "out", channels=channels, outputs=["labels", "objects", "outlines", "overlay"]
    )
    record = read_record(tmp_path / "out/a.json")
    assert (summary.failed, record.provenance.inference["channels"]) == (0, found.provenance.inference["channels"])
    for objects in (found.objects, pd.read_csv(tmp_path / "out/a.objects.csv")):
        for place, channel in enumerate(("nuclei", "membrane")):
            total = (objects["area_px"] * objects[f"{channel}_intensity_mean"]).sum()
            assert total == pytest.approx(pixels[found.mask == 1, place].sum() / 255, rel=1e-4)
        assert {"ring_nuclei_intensity_mean", "membrane_intensity_std"} <= set(objects)
    for stated in (None, {"membrane": 1, "nuclei": 3}):
        with pytest.raises(DataError, match="Expected images to have the channels that the network takes"):
            mine.segment(file, channels=stated)
        with pytest.raises(DataError, match=r"in the same order \(nuclei, membrane\)"):
            mine.segment_to(file, tmp_path / "out", channels=stated)
    with pytest.raises(DataError, match="expected up to 3 channels, got 4"):
        mine.segment(file, channels=["a", "b", "c", "d"])
