import json
import threading
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from microseg.data import write_png
from microseg.errors import DataError, ImageReadError, SettingsError
from microseg.inference import Engine, Provenance, Segmentation, read_record, segment_batch, segment_file


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
        counting, images, out, provenance=provenance, mpp=0.5, progress=lambda done, total: seen.append((done, total))
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

    def done(**changed: object) -> int:
        options = {"provenance": provenance, "outputs": ("labels", "objects"), **changed}
        return segment_batch(counting, images, out, **options).done  # type: ignore[arg-type]

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
    assert done(provenance=provenance.model_copy(update={"model": "microseg-segmenter/4"})) == 5
    assert done(provenance=provenance.model_copy(update={"model": "microseg-segmenter/4", "commit": "beef"})) == 0


def test_other_weights_and_settings_are_redone_even_under_the_same_name(
    brightness: type, images: list[Path], provenance: Provenance, tmp_path: Path
) -> None:
    network = brightness()
    engines = [Engine(network, tile=128, halo=16), Engine(network, tile=160, halo=16)]
    network.scale.data += 1
    engines.append(Engine(network, tile=160, halo=16))
    engines.append(Engine(network, tile=160, halo=16, batch=1))  # does not change the result
    done = [segment_batch(e, images[:2], tmp_path, provenance=provenance, outputs=["labels"]).done for e in engines]
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
    out = tmp_path / "out"
    summary = segment_batch(counting, [*paths, paths[0]], out, provenance=provenance, outputs=["labels", "objects"])
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
    from microseg.inference import batch

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
    monkeypatch.setattr(batch, "read_image", reading)
    monkeypatch.setattr(Segmentation, "save", slow)
    first: list[int] = []
    segment_batch(
        Engine(brightness(), tile=128, halo=16),
        [*paths, *more],
        tmp_path / "out",
        provenance=provenance,
        outputs=["labels"],
        progress=lambda *_: first.append(len(read)),
    )
    assert first[0] <= 2 + 1 + 2 + 1  # ahead, in the network, being written, the next


def test_an_empty_batch_and_a_wrong_output(counting: Counting, provenance: Provenance, tmp_path: Path) -> None:
    summary = segment_batch(counting, [], tmp_path / "out", provenance=provenance)
    assert summary.images == 0
    assert summary.measurements is not None
    assert len(pd.read_csv(summary.measurements)) == 0
    with pytest.raises(SettingsError, match="masks"):
        segment_batch(counting, [], tmp_path / "out", provenance=provenance, outputs=["masks"])
