"""Batches in chunks: each with the version in production when it starts, by several processes, some of them killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tifffile

from flows import segment as module
from flows.segment import segment
from microseg.errors import DataError, SettingsError
from microseg.outputs.record import read_record
from microseg.slides.images import write_png
from microseg.synthetic.labs import LAB_B, generate_image


def slides(folder: Path, number: int, size: int = 64) -> Path:
    """Write different images."""
    folder.mkdir()
    section, _ = generate_image(LAB_B, size, 1.0, seed=0)
    for one in range(number):
        image = section.copy()
        image[0, 0] = (one // 256, one % 256, 0)
        write_png(folder / f"slide_{one:03d}.png", image)
    return folder


def test_next_chunk_uses_the_new_version(copied: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = slides(tmp_path / "slides", 6)
    real, chunks = module.segment_images, []

    def segment_and_promote(*arguments: Any, **options: Any) -> Any:
        made = real(*arguments, **options)
        chunks.append(len(made))
        copied.registry.versions.set_alias("production", 1)  # as a person does in MLflow, after the first chunk
        return made

    monkeypatch.setattr(module, "segment_images", segment_and_promote)
    record = segment(folder, changes=("inference.chunk_size=2",))
    assert chunks == [2, 2, 2]
    assert (record.version, record.done) == ("2, 1", 6)
    models = pd.read_csv(Path(record.out) / "summary.csv")["model"].tolist()
    assert models == ["microseg-segmenter/2"] * 2 + ["microseg-segmenter/1"] * 4
    facts = json.loads((Path(record.out) / "batch.json").read_text())
    assert set(facts["provenance"]) == {"microseg-segmenter/1", "microseg-segmenter/2"}
    page = (Path(record.out) / "index.html").read_text(encoding="utf-8")
    assert "segmented with microseg-segmenter/2, microseg-segmenter/1" in page
    assert copied.registry.production.history()[0].version == 1  # it was validated first


def test_slides_and_pixel_sizes(copied: Any, tmp_path: Path) -> None:
    """A slide among images, with its pixel size from images.csv; missing pixel sizes are counted."""
    folder = slides(tmp_path / "slides", 2)
    pixels, _ = generate_image(LAB_B, 256, 1.0, seed=1)
    tifffile.imwrite(folder / "whole.svs", pixels, tile=(128, 128), photometric="rgb")
    (folder / "images.csv").write_text("file,mpp\nwhole.svs,1.0\n")
    record = segment(folder, changes=("inference.chunk_size=2", "inference.skip_glass=false"))
    assert (record.done, record.failed, record.missing_pixel_size) == (3, 0, 2)
    made = read_record(Path(record.out) / "whole.json")
    assert (made.mpp, made.summary["computed_fraction"]) == (1.0, 1)
    assert made.provenance.inference["skip_glass"] is False
    again = segment(folder, keep_existing=True)
    assert (again.skipped, again.missing_pixel_size) == (3, 2)


def test_single_file_gives_the_outputs_of_a_folder_of_one_image(copied: Any, tmp_path: Path) -> None:
    folder = slides(tmp_path / "slides", 2)
    (folder / "images.csv").write_text("file,mpp\nslide_001.png,0.8\n")
    record = segment(folder / "slide_001.png")
    assert (record.images, record.done, record.missing_pixel_size) == (1, 1, 0)
    assert record.out == copied.home / "segmentations" / "slide_001"
    assert read_record(record.out / "slide_001.json").mpp == 0.8
    assert {path.name for path in record.out.iterdir()} >= {"index.html", "summary.csv", "slide_001.labels.tif"}
    copied.registry.production.promote(1, alias="production-lab_b")
    of_lab = segment(sorted((copied.lab_b / "images").iterdir())[0], out=tmp_path / "lab")
    assert of_lab.version == "1"  # lab.yaml beside images/ names the lab
    with pytest.raises(DataError, match="expected an image or a folder of images"):
        segment(folder / "gone.png")


def test_any_file_name_and_kind_is_segmented_fails_alone_or_is_named(copied: Any, tmp_path: Path) -> None:
    folder = slides(tmp_path / "slides", 2)
    content = (folder / "slide_000.png").read_bytes()
    long = "組織切片画像" * 13 + "組織.png"
    for name in (b"M\xfcller.png", long.encode(), b"a\nb.png", b"-x.png", b"=1+1.png", b"100% ?#.png"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(content)
    (folder / "._slide_000.png").write_bytes(b"\0\5\x16\7")
    (folder / "gone.png").symlink_to("/mnt/not-mounted/b.png")
    (folder / "second.png").symlink_to(folder / "slide_000.png")
    for name in ("slide.dcm", "photo.webp"):
        (folder / name).write_bytes(b"any")
    tifffile.imwrite(folder / "panel.qptiff", generate_image(LAB_B, 64, 1.0, seed=3)[0], photometric="rgb")
    slides(folder / "more", 3)
    record = segment(folder, mpp=1.0)
    assert (record.images, record.done, record.failed) == (12, 10, 2)
    failures = (record.out / "failures.csv").read_text()
    assert "gone.png" in failures
    assert "slide.dcm" in failures
    assert record.left_out == {
        "more": "a folder with 3 files",
        "photo.webp": "no known kind of image (.webp)",
    }
    names = pd.read_csv(record.out / "summary.csv")["image"].tolist()
    assert {"M\\xfcller.png", long, "a\\nb.png", "'-x.png", "second.png", "slide_000.png", "panel.qptiff"} <= set(names)
    assert segment(folder, mpp=1.0).skipped == 10


def test_outputs_into_the_folder_of_the_images_leave_nothing_there(copied: Any, tmp_path: Path) -> None:
    folder = slides(tmp_path / "slides", 1)
    before = sorted(folder.iterdir())
    with pytest.raises(DataError, match="other than that of the images"):
        segment(folder, mpp=1.0, out=folder)
    assert sorted(folder.iterdir()) == before


def test_stated_pixel_sizes_never_override_those_of_files_without_a_word(copied: Any, tmp_path: Path) -> None:
    folder, pixels = slides(tmp_path / "slides", 1), generate_image(LAB_B, 64, 1.0, seed=3)[0]
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(folder / name, pixels, photometric="rgb", resolution=(20_000, 20_000), resolutionunit=3)
    record = segment(folder, mpp=2.0)
    assert (record.done, record.failed) == (1, 2)
    failures = (record.out / "failures.csv").read_text()
    assert "got 0.5 microns of the file and 2.0 of --mpp: areas would differ 16 times" in failures
    (folder / "images.csv").write_text("file,mpp\na.tif,1.0\nc.tif,1.0\n")
    record = segment(folder)
    assert (record.done, record.failed) == (3, 0)
    assert record.notes == (
        "a.tif: 1.0 microns per pixel of images.csv override 0.5 of the file",
        "images.csv has 1 lines of images that are not there: c.tif",
    )
    with pytest.raises(DataError, match=r"2\.0 microns of --mpp and 1\.0 of images\.csv"):
        segment(folder, mpp=2.0)


def test_images_of_a_batch_have_one_bit_depth(copied: Any, tmp_path: Path) -> None:
    folder, pixels = tmp_path / "slides", generate_image(LAB_B, 64, 1.0, seed=3)[0].astype("uint16")
    folder.mkdir()
    for name, factor in (("dark.tif", 2), ("bright.tif", 16)):  # at most 510 and 4080
        tifffile.imwrite(folder / name, pixels * factor, photometric="rgb")
    record = segment(folder)
    assert "12 hold nearly all values" in record.notes[0]
    assert read_record(record.out / "dark.json").provenance.inference["bit_depth"] == 12


def test_rejects_unknown_output_before_segmenting(copied: Any, tmp_path: Path) -> None:
    folder = slides(tmp_path / "slides", 1)
    with pytest.raises(SettingsError, match=r"labels.*got \['masks'\]: correct inference.outputs"):
        segment(folder, out=tmp_path / "out", changes=('inference.outputs=["labels","masks"]',))
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_killed_batch_of_500_segments_each_image_once(copied: Any, tmp_path: Path) -> None:
    folder, out = slides(tmp_path / "slides", 500), tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "flows.segment",
        str(folder),
        "--out",
        str(out),
        "--set",
        "inference.chunk_size=100",
    ]
    log = (tmp_path / "log.txt").open("w")
    process = subprocess.Popen(command, env=os.environ, stdout=log, stderr=log, start_new_session=True)
    end = time.monotonic() + 500
    while len(list(out.glob("*.json"))) < 150:
        assert process.poll() is None, (tmp_path / "log.txt").read_text()
        assert time.monotonic() < end
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("slide_*.json")}
    assert 150 <= len(before) < 500
    record = segment(folder, out=out)
    assert (record.images, record.failed) == (500, 0)
    assert record.skipped == len(before)
    assert record.done == 500 - len(before)
    assert all((out / name).stat().st_mtime_ns == when for name, when in before.items())  # none twice
    summary = pd.read_csv(out / "summary.csv")
    assert summary["image"].tolist() == [f"slide_{one:03d}.png" for one in range(500)]
    assert summary["sha256"].nunique() == 500
    assert not list(out.glob("*.partial"))


@pytest.mark.long
def test_batch_survives_a_killed_dask_worker(copied: Any, tmp_path: Path) -> None:
    pytest.importorskip("prefect_dask")
    folder, out = slides(tmp_path / "slides", 120, 128), tmp_path / "out"
    alone = segment(folder, out=tmp_path / "alone")
    script = (
        "import sys; from pathlib import Path; from flows.segment import segment\n"
        "if __name__ == '__main__':\n"
        "    record = segment(Path(sys.argv[1]), out=Path(sys.argv[2]), "
        "changes=('inference.workers=2', 'inference.chunk_size=10'))\n"
        "    print(record.done, record.skipped, record.failed)\n"
    )
    (tmp_path / "run.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(module.__file__).parent.parent), *sys.path])}
    log = (tmp_path / "log.txt").open("w")
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py"), str(folder), str(out)],
        env=environment, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    try:
        killed = _kill_one_worker(process, out, tmp_path / "log.txt")
        assert process.wait(500) == 0, (tmp_path / "log.txt").read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert killed
    output = (tmp_path / "log.txt").read_text().splitlines()[-1]
    done, skipped, failed = map(int, output.split())
    assert (done + skipped, failed) == (120, 0)
    for path in sorted((tmp_path / "alone").glob("slide_*.json")):
        one, other = read_record(path), read_record(out / path.name)
        assert one.summary == other.summary
        labels = [(place / one.outputs["labels"]).read_bytes() for place in (tmp_path / "alone", out)]
        assert labels[0] == labels[1]
    assert alone.done == 120
    assert not list(out.glob("*.partial"))


def _kill_one_worker(process: "subprocess.Popen[bytes]", out: Path, log: Path) -> int:
    """Kill one of the worker processes that the batch has started, while it works."""
    end = time.monotonic() + 500
    while len(list(out.glob("slide_*.json"))) < 15:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)
    workers = [pid for pid in _descendants(process.pid) if b"spawn_main" in _command(pid)]
    assert len(workers) >= 2, log.read_text()
    os.kill(workers[0], signal.SIGKILL)
    return workers[0]


def _descendants(pid: int) -> list[int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(text.rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
