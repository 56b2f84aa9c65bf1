import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import tifffile

from microseg.data import write_png
from microseg.errors import DataError, ImageReadError, SettingsError
from microseg.inference import (
    BatchOptions,
    Engine,
    Provenance,
    Segmentation,
    finish_batch,
    plan_batch,
    read_record,
    segment_batch,
    segment_file,
    segment_part,
)


@pytest.fixture
def images(tmp_path: Path, squares: npt.NDArray[np.uint8]) -> list[Path]:
    folder = tmp_path / "images"
    folder.mkdir()
    paths = [folder / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        write_png(path, np.roll(squares, number, axis=1))
    return paths


class Counting(Engine):
    """Counts how often the network was asked, and can be made to stop the process."""

    calls = 0
    stop_at: int | None = None
    most_at_once = 0

    def probabilities(self, image: npt.NDArray[np.uint8], mpp: float | None = None) -> npt.NDArray[np.float32]:
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        return super().probabilities(image, mpp)


@pytest.fixture
def counting(brightness: type) -> Counting:
    return Counting(brightness(), tile=128, halo=16)


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_batch_by_hand(counting: Counting, images: list[Path], provenance: Provenance, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", list[tuple[int, int]]()
    summary = segment_batch(
        counting,
        images,
        out,
        provenance=provenance,
        options=BatchOptions(mpp=0.5),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert (summary.images, summary.done, summary.skipped, summary.failed) == (5, 5, 0, 0)
    assert summary.megapixels == pytest.approx(5 * 40 * 60 / 1e6)
    assert seen == [(n, 5) for n in range(1, 6)]
    assert summary.measurements is not None
    objects = pd.read_csv(summary.measurements)
    assert objects["image"].tolist() == [f"{n}.png" for n in range(5) for _ in range(2)]
    assert objects["area_um2"].tolist() == [24, 4] * 5
    table = pd.read_csv(summary.summary)
    assert table["objects_bright"].tolist() == [2] * 5
    assert table["area_fraction_bright"].tolist() == pytest.approx([112 / 2400] * 5, rel=1e-4)
    assert pd.read_csv(summary.failures).to_dict("list") == {"image": [], "reason": []}
    record = json.loads(summary.record.read_text())
    assert record["done"] == 5
    assert list(record["provenance"]) == ["microseg-segmenter/3"]
    assert record["records"] == [f"{n}.json" for n in range(5)]
    alone = segment_file(counting, images[3], provenance=provenance, mpp=0.5)
    np.testing.assert_array_equal(Segmentation.load(out / "3.json").mask, alone.mask)
    with pytest.raises(FrozenInstanceError):
        summary.done = 0  # type: ignore[misc]


def test_a_broken_image_is_recorded_and_passed_over(
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


def test_an_image_that_the_network_fails_on_is_passed_over(
    engine: Engine, images: list[Path], provenance: Provenance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(image: npt.NDArray[np.uint8], mpp: float | None = None) -> npt.NDArray[np.float32]:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(engine, "probabilities", fail)
    summary = segment_batch(engine, images[:1], tmp_path / "out", provenance=provenance)
    assert summary.failed == 1
    assert pd.read_csv(summary.failures)["reason"].tolist() == ["RuntimeError: out of memory"]


def test_a_rerun_skips_everything_and_gives_the_same_tables(
    counting: Counting, images: list[Path], provenance: Provenance, tmp_path: Path
) -> None:
    first = segment_batch(counting, images, tmp_path / "out", provenance=provenance)
    assert first.measurements is not None
    tables = {path: path.read_bytes() for path in (first.measurements, first.summary)}
    calls = counting.calls
    again = segment_batch(counting, images, tmp_path / "out", provenance=provenance)
    assert (again.done, again.skipped) == (0, 5)
    assert counting.calls == calls
    assert {path: path.read_bytes() for path in tables} == tables


def test_only_what_changed_is_redone(
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


def test_other_weights_and_settings_are_redone_even_under_the_same_name(
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


def test_a_killed_batch_leaves_nothing_half_and_goes_on(
    counting: Counting, images: list[Path], provenance: Provenance, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    counting.stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        segment_batch(counting, images, out, provenance=provenance)
    records = list(out.glob("*.json"))
    assert {path.stem for path in records} == {"0", "1", "2"}  # what was being written was finished
    for path in records:
        assert visible(out) >= {*read_record(path).outputs.values()}
    assert len(visible(out)) == 3 * 5
    (out / ".3.abcd1234.partial").mkdir()  # as kill -9 leaves it
    (out / ".3.abcd1234.partial" / "3.geojson").write_text('{"type"')
    counting.stop_at = None
    summary = segment_batch(counting, images, out, provenance=provenance)
    assert (summary.done, summary.skipped) == (2, 3)
    assert not [name for name in visible(out) if name.startswith(".")]


def test_a_full_disk_ends_the_batch_and_keeps_what_is_done(
    counting: Counting, images: list[Path], provenance: Provenance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, save = tmp_path / "out", Segmentation.save

    def full(self: Segmentation, *args: object) -> dict[str, Path]:
        if self.source.endswith("1.png"):
            raise OSError(28, "No space left on device")
        return save(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Segmentation, "save", full)
    with pytest.raises(OSError, match="No space"):
        segment_batch(counting, images, out, provenance=provenance)
    assert (out / "0.json").exists()
    assert counting.calls < 5


def test_same_stems_and_same_names_do_not_collide(
    counting: Counting, squares: npt.NDArray[np.uint8], provenance: Provenance, tmp_path: Path
) -> None:
    paths = [tmp_path / "p1" / "a.png", tmp_path / "p1" / "a.tif", tmp_path / "p2" / "a.png"]
    for number, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        write_png(path, np.roll(squares, 3 * number, axis=0))
    out, options = tmp_path / "out", BatchOptions(outputs=["labels", "objects"])
    summary = segment_batch(counting, [*paths, paths[0]], out, provenance=provenance, options=options)
    assert (summary.images, summary.done) == (3, 3)
    for number, name in enumerate(("p1_a.png", "a.tif", "p2_a.png")):
        expected = np.roll(squares[..., 0] > 127, 3 * number, axis=0)
        np.testing.assert_array_equal(Segmentation.load(out / f"{name}.json").mask, expected)
    assert summary.measurements is not None
    assert pd.read_csv(summary.measurements)["image"].unique().tolist() == ["p1_a.png", "a.tif", "p2_a.png"]


def test_outputs_do_not_go_among_the_images(counting: Counting, images: list[Path], provenance: Provenance) -> None:
    with pytest.raises(DataError, match="choose another"):
        segment_batch(counting, images, images[0].parent, provenance=provenance)


def test_few_images_are_in_memory_at_once(
    brightness: type, images: list[Path], provenance: Provenance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writers that are stuck stop the readers: no more than the window is read."""
    from microseg.inference import part

    read, wait, save = list[Path](), threading.Event(), Segmentation.save

    def reading(path: Path) -> npt.NDArray[np.uint8]:
        read.append(path)
        return np.zeros((8, 8, 3), np.uint8)

    def slow(self: Segmentation, *args: object) -> dict[str, Path]:
        if not wait.wait(0.5):
            wait.set()
        return save(self, *args)  # type: ignore[arg-type]

    paths = [image for image in images for _ in range(1)]
    more = [images[0].with_name(f"more{n}.png") for n in range(15)]
    for path in more:
        path.write_bytes(images[0].read_bytes())
    monkeypatch.setattr(part, "read_image", reading)
    monkeypatch.setattr(Segmentation, "save", slow)
    first: list[int] = []
    segment_batch(
        Engine(brightness(), tile=128, halo=16),
        [*paths, *more],
        tmp_path / "out",
        provenance=provenance,
        options=BatchOptions(outputs=["labels"]),
        progress=lambda *_: first.append(len(read)),
    )
    assert first[0] <= 2 + 1 + 2 + 1  # ahead, in the network, being written, the next


def test_an_empty_batch_and_a_wrong_output(counting: Counting, provenance: Provenance, tmp_path: Path) -> None:
    summary = segment_batch(counting, [], tmp_path / "out", provenance=provenance)
    assert summary.images == 0
    assert summary.measurements is not None
    assert len(pd.read_csv(summary.measurements)) == 0
    with pytest.raises(SettingsError, match="masks"):
        BatchOptions(outputs=["masks"])


def test_slides_and_images_in_one_batch(
    counting: Counting, images: list[Path], provenance: Provenance, tmp_path: Path
) -> None:
    """Large ones are segmented as slides, and skipped when done before, as all others."""
    large = tmp_path / "images" / "large.tif"
    pixels = np.full((300, 400, 3), 20, np.uint8)
    pixels[50:120, 60:200] = 230
    tifffile.imwrite(large, pixels, tile=(128, 128), photometric="rgb")
    unreadable = tmp_path / "images" / "bad.svs"
    unreadable.write_text("no slide")
    out, options = tmp_path / "out", BatchOptions(mpp={"large.tif": 0.5}, slide_megapixels=0.1)
    summary = segment_batch(counting, [images[0], large, unreadable], out, provenance=provenance, options=options)
    assert (summary.done, summary.failed) == (2, 1)
    assert counting.calls == 1  # of the small one alone
    assert read_record(out / "large.json").summary["computed_fraction"] == 1
    assert Segmentation.load(out / "large.json").mask.sum() == 70 * 140
    table = pd.read_csv(summary.measurements)  # type: ignore[arg-type]
    assert table["image"].tolist() == ["0.png", "0.png", "large.tif"]
    assert table["area_um2"].tolist()[-1] == 70 * 140 / 4
    again = segment_batch(counting, [images[0], large, unreadable], out, provenance=provenance, options=options)
    assert (again.done, again.skipped, again.failed) == (0, 2, 1)
    options = replace(options, slide_megapixels=1.0)
    whole = segment_batch(counting, [large], out, provenance=provenance, options=options)
    assert (whole.done, counting.calls) == (1, 2)


def test_a_slide_that_cannot_be_written_ends_the_batch(
    counting: Counting, images: list[Path], provenance: Provenance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("microseg.inference.part.segment_slide", full)
    options = BatchOptions(slide_megapixels=1e-6)
    with pytest.raises(OSError, match="No space"):
        segment_batch(counting, images, tmp_path / "out", provenance=provenance, options=options)


def test_tables_as_parquet_are_those_in_csv(
    counting: Counting, images: list[Path], provenance: Provenance, tmp_path: Path
) -> None:
    options = BatchOptions(mpp={"1.png": 0.5})
    summary = segment_batch(counting, images, tmp_path / "out", provenance=provenance, options=options)
    assert summary.measurements is not None
    table = pd.read_parquet(summary.measurements.with_suffix(".parquet"))
    pd.testing.assert_frame_equal(table, pd.read_csv(summary.measurements), check_dtype=False)
    assert table["label"].dtype == np.int64
    assert table["area_um2"].isna().sum() == 8
    assert len(pd.read_parquet(summary.summary.with_suffix(".parquet"))) == 5
    empty = segment_batch(counting, [], tmp_path / "none", provenance=provenance)
    assert len(pd.read_parquet(empty.measurements.with_suffix(".parquet"))) == 0  # type: ignore[union-attr]


def test_unknown_pixel_sizes_are_counted(
    brightness: type, images: list[Path], provenance: Provenance, tmp_path: Path
) -> None:
    options = BatchOptions(outputs=["labels"], mpp={"1.png": 0.5})
    for mpp, unsized in ((0.5, 4), (None, 0)):
        engine = Engine(brightness(mpp=mpp), tile=128, halo=16)
        summary = segment_batch(engine, images, tmp_path / "out", provenance=provenance, options=options)
        assert summary.unsized == unsized


def test_in_parts_it_is_the_same_batch(
    counting: Counting, images: list[Path], provenance: Provenance, tmp_path: Path
) -> None:
    """Jobs and outcomes go to other processes and come back; so do slides."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    options = BatchOptions(mpp={"1.png": 0.5}, slide_megapixels=0.001, skip_glass=False)
    seen, outcomes = list[tuple[int, int]](), []
    jobs = pickle.loads(pickle.dumps(plan_batch(images, out)))  # noqa: S301
    for start in range(0, 5, 2):
        part = segment_part(
            counting,
            jobs[start : start + 2],
            out,
            provenance=provenance,
            options=options,
            progress=lambda done, total: seen.append((done, total)),
        )
        outcomes += pickle.loads(pickle.dumps(part))  # noqa: S301
    summary = finish_batch(outcomes, out, seconds=1)
    assert (summary.images, summary.done) == (5, 5)
    assert seen == [(1, 2), (2, 2), (1, 2), (2, 2), (1, 1)]
    assert counting.calls == 0  # all were slides
    inference = read_record(out / "0.json").provenance.inference
    assert (inference["slide_megapixels"], inference["skip_glass"]) == (0.001, False)
    segment_batch(counting, images, whole, provenance=provenance, options=options)
    assert (out / "measurements.csv").read_bytes() == (whole / "measurements.csv").read_bytes()


KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from microseg.inference import Engine, Provenance, segment_batch
from microseg.model import NetworkConfig, PyramidSegmenter

class Slow(Engine):
    def probabilities(self, image, mpp=None):
        time.sleep(0.1)
        return super().probabilities(image, mpp)

config = NetworkConfig(classes=("background", "gland"), encoder="blocks", filters=(4,), pyramid_filters=4)
import torch
torch.manual_seed(0)
engine = Slow(PyramidSegmenter(config), tile=128, halo=16)
images, out = sorted(Path(sys.argv[1]).iterdir()), Path(sys.argv[2])
summary = segment_batch(engine, images, out, provenance=Provenance(model="m"))
print(summary.done, summary.skipped, summary.failed)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_what_was_finished_before_the_process_was_killed_stays(
    images: list[Path], tmp_path: Path, how: signal.Signals
) -> None:
    for number in range(5, 30):
        (images[0].parent / f"{number}.png").write_bytes(images[number % 5].read_bytes())
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(images[0].parent), str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(out.glob("*.json"))) < 3:
        time.sleep(0.02)
    os.kill(process.pid, how)
    process.wait()
    finished = {path.stem: path.stat().st_mtime_ns for path in out.glob("*.json")}
    assert 3 <= len(finished) < 30
    for name in finished:
        Segmentation.load(out / f"{name}.json")
        assert all((out / file).is_file() for file in read_record(out / f"{name}.json").outputs.values())
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(30 - len(finished)), str(len(finished)), "0"]
    assert all((out / f"{name}.json").stat().st_mtime_ns == when for name, when in finished.items())
    assert not list(out.glob(".*"))
