"""Processes that read and write images beside the network."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from microseg.datasets.appearance import APPEARANCE_FEATURES, image_features
from microseg.inference import worker
from microseg.inference.batch import segment_batch
from microseg.inference.engine import Engine
from microseg.inference.image_pipeline import BatchOptions
from microseg.inference.worker import WorkerProcess
from microseg.models.config import NetworkConfig
from microseg.models.network import PyramidSegmenter
from microseg.models.reference_distribution import LabDistribution, ReferenceDistribution
from microseg.outputs.record import Provenance, read_record
from microseg.outputs.stains import StainOptions
from microseg.processes import IdleProcesses
from microseg.slides.images import read_image, write_png

ALL = ("labels", "outlines", "overlay", "objects", "probabilities")


@pytest.fixture
def reference(images: list[Path]) -> ReferenceDistribution:
    features = image_features(read_image(images[0]))
    assert features is not None
    lab = LabDistribution(5, features, np.eye(len(features)), 1.0)
    return ReferenceDistribution(APPEARANCE_FEATURES, {"a": lab})


def contents(folder: Path) -> dict[str, Any]:
    """Files by name; records without what differs from run to run."""
    found: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json" and path.name != "batch.json":
            found[path.name] = read_record(path).model_dump(exclude={"created", "seconds"})
        elif not path.name.startswith((".", "summary.", "batch.")):
            found[path.name] = path.read_bytes()
    return found


@pytest.mark.parametrize("mpp", [None, 0.5])
def test_processes_write_the_same_files_as_threads(
    brightness: type,
    images: list[Path],
    provenance: Provenance,
    reference: ReferenceDistribution,
    tmp_path: Path,
    mpp: float | None,
) -> None:
    images[1].write_bytes(images[1].read_bytes()[:90])
    engine = Engine(brightness(mpp=None if mpp is None else 1.0), tile=128, halo=16)
    found = []
    for processes in (0, 2):
        out = tmp_path / f"out{processes}"
        options = BatchOptions(outputs=ALL, mpp=mpp, processes=processes, stains=StainOptions(("hematoxylin",)))
        summary = segment_batch(engine, images, out, provenance=provenance, options=options, reference=reference)
        assert (summary.done, summary.failed) == (4, 1)
        found.append(contents(out))
    assert found[0] == found[1]
    assert len(found[0]) > 4 * 6
    assert segment_batch(engine, images, out, provenance=provenance, options=options).skipped == 4


def test_processes_separate_objects(images: list[Path], provenance: Provenance, tmp_path: Path) -> None:
    names = {"classes": ("background", "cell"), "instances": ("cell",), "head": "instance"}
    network = PyramidSegmenter(NetworkConfig(**names, encoder="blocks", channels=(4,), pyramid_channels=4)).eval()  # type: ignore[arg-type]
    engine, found = Engine(network, tile=128, halo=16), []
    for processes in (0, 1):
        options = BatchOptions(outputs=("labels", "objects"), processes=processes)
        segment_batch(engine, images, tmp_path / str(processes), provenance=provenance, options=options)
        found.append(contents(tmp_path / str(processes)))
    assert found[0] == found[1]
    assert "0.instances.tif" in found[0]


def test_process_that_is_killed_fails_one_image_only(
    brightness: type, images: list[Path], provenance: Provenance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5, 9):
        images.append(images[0].with_name(f"{number}.png"))
        images[-1].write_bytes(images[0].read_bytes())
    write = WorkerProcess.write

    def kill(self: WorkerProcess, task: Any, *arguments: Any) -> Any:
        if task.name == "3":
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
        return write(self, task, *arguments)

    monkeypatch.setattr(WorkerProcess, "write", kill)
    engine = Engine(brightness(), tile=128, halo=16)
    options = BatchOptions(outputs=("labels",), processes=2)
    summary = segment_batch(engine, images, tmp_path / "out", provenance=provenance, options=options)
    assert (summary.done, summary.failed) == (8, 1)
    failures = pd.read_csv(summary.failures)
    assert failures["image"].tolist() == [str(images[3])]
    assert "it ended (SIGKILL)" in failures["reason"][0]


def test_unwritable_folder_ends_the_batch(
    brightness: type, images: list[Path], provenance: Provenance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: WorkerProcess, *_arguments: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(WorkerProcess, "write", full)
    engine, options = Engine(brightness(), tile=128, halo=16), BatchOptions(outputs=("labels",), processes=2)
    with pytest.raises(OSError, match="No space"):
        segment_batch(engine, images, tmp_path / "out", provenance=provenance, options=options)


def test_process_that_does_not_start_is_an_error(
    brightness: type, images: list[Path], provenance: Provenance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr(worker, "_idle", IdleProcesses(worker.WorkerProcess))
    with pytest.raises(worker.WorkerLostError, match="it ended"):
        segment_batch(
            Engine(brightness(), tile=128, halo=16),
            images,
            tmp_path / "out",
            provenance=provenance,
            options=BatchOptions(outputs=("labels",), processes=1),
        )


def test_error_at_the_start_of_a_process_ends_the_batch(
    brightness: type, images: list[Path], provenance: Provenance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> worker.WorkerProcess:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(worker, "_idle", IdleProcesses(full))
    options = BatchOptions(outputs=("labels",), processes=1)
    with pytest.raises(BlockingIOError, match="temporarily unavailable"):
        segment_batch(
            Engine(brightness(), tile=128, halo=16), images, tmp_path / "out", provenance=provenance, options=options
        )


def test_images_of_many_sizes_use_the_same_memory(brightness: type, provenance: Provenance, tmp_path: Path) -> None:
    paths: list[Path] = []
    for number, side in enumerate((30, 200, 10, 300, 31, 301, 8)):
        paths.append(tmp_path / f"{number}.png")
        pixels: npt.NDArray[np.uint8] = np.random.default_rng(number).integers(0, 256, (side, side + 3, 3), np.uint8)
        write_png(paths[-1], pixels)
    engine = Engine(brightness(), tile=128, halo=16)
    found = []
    for processes in (0, 1):
        options = BatchOptions(outputs=("labels", "probabilities"), processes=processes)
        segment_batch(engine, paths, tmp_path / f"out{processes}", provenance=provenance, options=options)
        found.append(contents(tmp_path / f"out{processes}"))
    assert found[0] == found[1]


def test_process_is_used_again_for_the_next_batch(
    brightness: type, images: list[Path], provenance: Provenance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_idle", IdleProcesses(worker.WorkerProcess))
    options = BatchOptions(outputs=("labels",), processes=1)
    for name in ("a", "b"):
        engine = Engine(brightness(), tile=128, halo=16)
        segment_batch(engine, images[:2], tmp_path / name, provenance=provenance, options=options)
        assert len(worker._idle) == 1
    worker._idle.take().close()


def test_process_that_was_killed_while_it_was_idle_is_replaced() -> None:
    killed = worker.borrow()
    worker.give_back(killed)
    os.kill(killed._process.pid, signal.SIGKILL)
    killed._process.wait()
    other = worker.borrow()
    assert other is not killed
    assert other.alive()
    other.close()
