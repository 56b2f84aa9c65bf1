import json
import pickle
from dataclasses import FrozenInstanceError, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import tifffile

from microseg.errors import DataError, SettingsError
from microseg.inference.batch import plan_batch, segment_batch, segment_images
from microseg.inference.engine import Engine
from microseg.inference.image_pipeline import BatchOptions
from microseg.inference.single_image import segment_file
from microseg.outputs.batch_summary import finish_batch
from microseg.outputs.record import Provenance, read_record
from microseg.outputs.segmentation import Segmentation
from microseg.slides.images import write_png
from tests.microseg.inference.counting import Counting


def test_writes_outputs_and_tables(
    counting: Counting, images: list[Path], provenance: Provenance, tmp_path: Path
) -> None:
    out, finished = tmp_path / "out", list[None]()
    summary = segment_batch(
        counting,
        images,
        out,
        provenance=provenance,
        options=BatchOptions(mpp=0.5),
        progress=lambda: finished.append(None),
    )
    assert (summary.images, summary.done, summary.skipped, summary.failed) == (5, 5, 0, 0)
    assert summary.megapixels == pytest.approx(5 * 40 * 60 / 1e6)
    assert len(finished) == 5
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


def test_rerun_skips_all_images_and_writes_the_same_tables(
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


def test_outputs_get_the_same_names_after_a_kill_while_they_were_moved_into_place(
    counting: Counting, images: list[Path], provenance: Provenance, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    segment_batch(counting, images, out, provenance=provenance)
    names = [task.name for task in plan_batch(images, out)]
    outputs = read_record(out / f"{names[0]}.json").outputs
    staging = out / f".{names[0]}.abcd1234.partial"  # as `publish` leaves it: the record is moved last
    staging.mkdir()
    for file in (f"{names[0]}.json", *list(outputs.values())[1:]):
        (out / file).rename(staging / file)
    assert [task.name for task in plan_batch(images, out)] == names
    assert not (out / next(iter(outputs.values()))).exists()
    assert not staging.exists()


def test_every_row_outline_and_label_image_names_its_model(
    counting: Counting, images: list[Path], provenance: Provenance, tmp_path: Path
) -> None:
    """Version 4 is promoted during a batch of version 3; and the outputs of microseg 0.1 do not name the version."""
    out, options = tmp_path / "out", BatchOptions(mpp=0.5)
    tasks = plan_batch(images, out)
    later = provenance.model_copy(update={"model": "microseg-segmenter/4"})
    results = (
        *segment_images(counting, tasks[:2], out, provenance=provenance, options=options),
        *segment_images(counting, tasks[2:], out, provenance=later, options=options),
    )
    old = out / "0.objects.csv"
    pd.read_csv(old).drop(columns="model").to_csv(old, index=False)
    summary = finish_batch(results, out, seconds=1.0)
    models = ["microseg-segmenter/3"] * 2 + ["microseg-segmenter/4"] * 3
    assert summary.models == ("microseg-segmenter/3", "microseg-segmenter/4")
    assert summary.measurements is not None
    for table in (pd.read_csv(summary.measurements), pd.read_parquet(summary.measurements.with_suffix(".parquet"))):
        assert table["model"].tolist() == [model for model in models for _ in range(2)]
        assert table["mean_probability"].notna().all()
    assert pd.read_csv(summary.summary)["model"].tolist() == models
    for number, model in enumerate(models):
        outlines = json.loads((out / f"{number}.geojson").read_text())["features"]
        assert [it["properties"]["metadata"] for it in outlines] == [{"model": model, "image": f"{number}.png"}] * 2
        with tifffile.TiffFile(out / f"{number}.labels.tif") as tiff:
            assert f"Segmented with {model}" in (tiff.ome_metadata or "")
    old.write_text("image,area\n0.png,3\n")
    with pytest.raises(DataError, match="expected the columns image,label"):
        finish_batch(results, out, seconds=1.0)


def test_images_of_equal_stems_and_names_get_different_outputs(
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


def test_rejects_output_folder_of_the_images(counting: Counting, images: list[Path], provenance: Provenance) -> None:
    with pytest.raises(DataError, match="choose another"):
        segment_batch(counting, images, images[0].parent, provenance=provenance)


def test_empty_batch_and_unknown_output(counting: Counting, provenance: Provenance, tmp_path: Path) -> None:
    summary = segment_batch(counting, [], tmp_path / "out", provenance=provenance)
    assert summary.images == 0
    assert summary.measurements is not None
    assert len(pd.read_csv(summary.measurements)) == 0
    with pytest.raises(SettingsError, match="masks"):
        BatchOptions(outputs=["masks"])


def test_slides_and_images_in_one_batch(
    counting: Counting, images: list[Path], provenance: Provenance, tmp_path: Path
) -> None:
    """Large images are segmented as slides, and skipped in a second run like the others."""
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


def test_parquet_tables_equal_csv_tables(
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


def test_counts_missing_pixel_sizes(
    brightness: type, images: list[Path], provenance: Provenance, tmp_path: Path
) -> None:
    options = BatchOptions(outputs=["labels"], mpp={"1.png": 0.5})
    for mpp, missing_pixel_size in ((0.5, 4), (None, 0)):
        engine = Engine(brightness(mpp=mpp), tile=128, halo=16)
        summary = segment_batch(engine, images, tmp_path / "out", provenance=provenance, options=options)
        assert summary.missing_pixel_size == missing_pixel_size


def test_batch_in_chunks_gives_the_same_tables(
    counting: Counting, images: list[Path], provenance: Provenance, tmp_path: Path
) -> None:
    """Tasks and results can be pickled for other processes, also those of slides."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    options = BatchOptions(mpp={"1.png": 0.5}, slide_megapixels=0.001, skip_glass=False)
    finished, results = list[int](), []
    tasks = pickle.loads(pickle.dumps(plan_batch(images, out)))  # noqa: S301
    for start in range(0, 5, 2):
        part = segment_images(
            counting,
            tasks[start : start + 2],
            out,
            provenance=provenance,
            options=options,
            progress=partial(finished.append, start),
        )
        results += pickle.loads(pickle.dumps(part))  # noqa: S301
    summary = finish_batch(results, out, seconds=1)
    assert (summary.images, summary.done) == (5, 5)
    assert finished == [0, 0, 2, 2, 4]
    assert counting.calls == 0  # all were slides
    inference = read_record(out / "0.json").provenance.inference
    assert (inference["slide_megapixels"], inference["skip_glass"]) == (0.001, False)
    segment_batch(counting, images, whole, provenance=provenance, options=options)
    assert (out / "measurements.csv").read_bytes() == (whole / "measurements.csv").read_bytes()
