import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from microseg.errors import ImageReadError
from microseg.inference import image_files
from microseg.inference.batch import segment_batch
from microseg.inference.engine import Engine
from microseg.inference.image_files import ImageFiles
from microseg.inference.image_pipeline import BatchOptions, ImagePipeline
from microseg.inference.image_queue import ImageQueue, MemoryBudget
from microseg.inference.single_image import segment_file
from microseg.models.separation import Separation
from microseg.outputs.batch_summary import ImageResult, ImageTask
from microseg.outputs.record import Provenance, read_record
from microseg.outputs.segmentation import Segmentation
from microseg.slides.images import write_png
from microseg.slides.limited import ImageFile
from tests.microseg.inference.counting import Counting, visible


def test_broken_image_is_reported_as_failure(
    counting: Counting, images: list[Path], provenance: Provenance, tmp_path: Path
) -> None:
    images[1].write_bytes(images[1].read_bytes()[:90])
    gone = tmp_path / "images" / "gone.png"
    summary = segment_batch(counting, [*images, gone], tmp_path / "out", provenance=provenance)
    assert (summary.done, summary.failed) == (4, 2)
    failures = pd.read_csv(summary.failures)
    assert failures["image"].tolist() == [str(images[1]), str(gone)]
    assert failures["reason"].str.contains("expected an image").all()
    assert not (tmp_path / "out" / "1.json").exists()
    write_png(images[1], np.zeros((8, 8, 3), np.uint8))
    summary = segment_batch(counting, images, tmp_path / "out", provenance=provenance)
    assert (summary.done, summary.skipped, summary.failed) == (1, 4, 0)
    assert len(pd.read_csv(summary.failures)) == 0
    with pytest.raises(ImageReadError):
        segment_file(counting, gone, provenance=provenance)


def test_image_that_the_network_fails_on_is_reported_as_failure(
    engine: Engine, images: list[Path], provenance: Provenance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(engine, "submit", fail)
    summary = segment_batch(engine, images[:1], tmp_path / "out", provenance=provenance)
    assert summary.failed == 1
    assert pd.read_csv(summary.failures)["reason"].tolist() == ["RuntimeError: out of memory"]
    assert len(pd.read_csv(summary.summary)) == 0  # with a header


def test_segments_only_what_changed(
    counting: Counting, images: list[Path], provenance: Provenance, squares: npt.NDArray[np.uint8], tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def done(by: Provenance = provenance, **changed: Any) -> int:
        options = BatchOptions(**{"outputs": ("labels", "objects"), **changed})
        return segment_batch(counting, images, out, provenance=by, options=options).done

    assert done() == 5
    write_png(images[2], squares[::-1])
    assert done() == 1  # another image
    np.testing.assert_array_equal(Segmentation.load(out / "2.json").mask, (squares[::-1, :, 0] > 127))
    (out / "4.labels.tif").unlink()
    assert done() == 1  # a file is gone
    assert done(outputs=("labels",)) == 0  # fewer outputs are there already
    assert done(outputs=("labels", "outlines")) == 5
    assert done(mpp={"1.png": 0.5}, outputs=("labels",)) == 1  # another pixel size
    assert (done(), done()) == (5, 0)
    assert done(provenance.model_copy(update={"model": "microseg-segmenter/4"})) == 5
    assert done(provenance.model_copy(update={"model": "microseg-segmenter/4", "commit": "beef"})) == 0


def test_segments_again_for_other_weights_and_settings_of_the_same_name(
    brightness: type, images: list[Path], provenance: Provenance, tmp_path: Path
) -> None:
    network = brightness()
    engines = [Engine(network, tile=128, halo=16), Engine(network, tile=160, halo=16)]
    network.scale.data += 1
    engines.append(Engine(network, tile=160, halo=16))
    engines.append(Engine(network, tile=160, halo=16, batch=1))  # does not change the result
    options = BatchOptions(outputs=["labels"])
    done = [segment_batch(e, images[:2], tmp_path, provenance=provenance, options=options).done for e in engines]
    assert done == [2, 2, 2, 0]


def test_killed_batch_leaves_complete_outputs_and_continues(
    counting: Counting, images: list[Path], provenance: Provenance, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    counting.stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        segment_batch(counting, images, out, provenance=provenance)
    records = list(out.glob("*.json"))
    done = {path.stem for path in records}
    assert len(done) == 3  # what was being written was finished
    for path in records:
        assert visible(out) >= {*read_record(path).outputs.values()}
    assert len(visible(out)) == 3 * 5
    left = min({"0", "1", "2", "3", "4"} - done)
    (out / f".{left}.abcd1234.partial").mkdir()  # as kill -9 leaves it
    (out / f".{left}.abcd1234.partial" / f"{left}.geojson").write_text('{"type"')
    counting.stop_at = None
    summary = segment_batch(counting, images, out, provenance=provenance)
    assert (summary.done, summary.skipped) == (2, 3)
    assert not [name for name in visible(out) if name.startswith(".")]


def test_full_disk_ends_the_batch_and_keeps_finished_outputs(
    counting: Counting, images: list[Path], provenance: Provenance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = tmp_path / "out", ImageFiles.write

    def full(self: ImageFiles, task: ImageTask, *args: Any) -> ImageResult:
        if task.name == "1":
            raise OSError(28, "No space left on device")
        return write(self, task, *args)

    monkeypatch.setattr(ImageFiles, "write", full)
    for number in range(5, 20):
        images.append(images[0].with_name(f"{number}.png"))
        images[-1].write_bytes(images[0].read_bytes())
    with pytest.raises(OSError, match="No space"):
        segment_batch(counting, images, out, provenance=provenance)
    assert (out / "0.json").exists()
    assert counting.calls < 15


def test_few_images_are_in_memory(
    brightness: type, images: list[Path], provenance: Provenance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers wait for slow writers."""

    read, first, wait, write = list[Path](), list[int](), threading.Event(), ImageFiles.write

    def reading(path: Path, **_options: object) -> ImageFile:
        read.append(path)
        return ImageFile(None, np.zeros((8, 8, 3), np.uint8), slide=False)

    def slow(self: ImageFiles, *args: Any) -> ImageResult:
        if not wait.wait(0.5):
            first.append(len(read))
            wait.set()
        return write(self, *args)

    paths = [image for image in images for _ in range(1)]
    more = [images[0].with_name(f"more{n}.png") for n in range(15)]
    for path in more:
        path.write_bytes(images[0].read_bytes())
    monkeypatch.setattr(image_files, "read_file", reading)
    monkeypatch.setattr(ImageFiles, "write", slow)
    segment_batch(
        Engine(brightness(), tile=128, halo=16),
        [*paths, *more],
        tmp_path / "out",
        provenance=provenance,
        options=BatchOptions(outputs=["labels"]),
    )
    assert first[0] <= 2 + 1 + 2 + 1  # ahead, in the network, being written, the next


def test_slide_that_cannot_be_written_ends_the_batch(
    counting: Counting, images: list[Path], provenance: Provenance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("microseg.inference.image_pipeline.segment_slide", full)
    options = BatchOptions(slide_megapixels=1e-6)
    with pytest.raises(OSError, match="No space"):
        segment_batch(counting, images, tmp_path / "out", provenance=provenance, options=options)


COUNT = 24  # images
KILLED = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell takes away from what runs behind it
from pathlib import Path
import numpy as np
from microseg.inference.engine import Engine
from microseg.outputs.record import Provenance
from microseg.inference.batch import segment_batch
from microseg.models.config import NetworkConfig
from microseg.models.network import PyramidSegmenter

class Slow(Engine):
    def submit(self, *arguments, **options):
        time.sleep(float(sys.argv[3]))
        return super().submit(*arguments, **options)

config = NetworkConfig(classes=("background", "gland"), encoder="blocks", channels=(4,), pyramid_channels=4)
import torch
torch.manual_seed(0)
engine = Slow(PyramidSegmenter(config), tile=128, halo=16)
images, out = sorted(Path(sys.argv[1]).iterdir()), Path(sys.argv[2])
summary = segment_batch(engine, images, out, provenance=Provenance(model="m"))
print(summary.done, summary.skipped, summary.failed)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_outputs_finished_before_the_process_was_killed_are_kept(
    images: list[Path], tmp_path: Path, how: signal.Signals
) -> None:
    for number in range(5, COUNT):
        (images[0].parent / f"{number}.png").write_bytes(images[number % 5].read_bytes())
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(images[0].parent), str(out)]
    slowly = [*command, "0.5"]  # a busy machine shall not finish them all before it kills
    process = subprocess.Popen(slowly, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(out.glob("*.json"))) < 3:
        time.sleep(0.02)
    os.kill(process.pid, how)
    process.wait()
    finished = {path.stem: path.stat().st_mtime_ns for path in out.glob("*.json")}
    assert 3 <= len(finished) < COUNT
    for name in finished:
        Segmentation.load(out / f"{name}.json")
        assert all((out / file).is_file() for file in read_record(out / f"{name}.json").outputs.values())
    done = subprocess.run([*command, "0"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(COUNT - len(finished)), str(len(finished)), "0"]
    assert all((out / f"{name}.json").stat().st_mtime_ns == when for name, when in finished.items())
    assert {path.name for path in out.glob(".*")} == {".batch.lock", ".image-identities"}


def test_thread_that_holds_an_image_does_not_wait_for_memory_that_a_slide_reserves(
    engine: Engine, images: list[Path], provenance: Provenance, tmp_path: Path
) -> None:
    """Both would wait for ever: the slide for the image, and the thread for what the slide has reserved."""
    pipeline = ImagePipeline(engine, tmp_path, provenance, BatchOptions(outputs=("labels",)))
    files = ImageFiles(tmp_path, provenance, pipeline.options, None, engine.classes, Separation(), False, None)
    batch, budget = ImageQueue([ImageTask(path, path.stem) for path in images[:3]]), MemoryBudget(2)
    budget.image.acquire()  # a slide has reserved one of two, and waits for the other
    thread = threading.Thread(target=pipeline._in_thread, args=(files, batch, budget), daemon=True)
    thread.start()
    assert budget.image.acquire(timeout=120)
    budget.image.release()
    thread.join(120)
    assert [batch.result(number).record is not None for number in range(3)] == [True] * 3
