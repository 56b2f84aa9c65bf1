import json
import os
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from microseg.inference.batch import segment_batch
from microseg.inference.engine import Engine
from microseg.inference.image_pipeline import BatchOptions
from microseg.models.reference_distribution import summarize_scores
from microseg.outputs.record import Provenance
from microseg.report.batch_page import write_batch_page
from microseg.slides.images import write_png


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.targets += [value for name, value in attrs if name in ("href", "src") and value]


def read_rows(page: Path) -> list[dict[str, Any]]:
    names = ("name", "title", "width", "height", "mpp", "model", "unsized", "image", "outlines", "values", "outputs")
    rows = []
    for file in sorted((page.parent / "page").glob("rows-*.js")):
        text = file.read_text("utf-8")
        rows += json.loads(text.removeprefix("microsegRows(").removesuffix(");\n"))
    return [dict(zip(names, row, strict=True)) for row in rows]


def test_page_links_to_existing_files_and_lists_failures(tiny_network: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a <b> & #1", "c"):
        write_png(folder / f"{name}.png", np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8))
    (folder / "broken.png").write_bytes(b"no image")
    engine = Engine(tiny_network(), tile=64, halo=8)
    summary = segment_batch(engine, sorted(folder.iterdir()), tmp_path / "out", provenance=Provenance(model="seg/3"))
    page = write_batch_page(summary)
    text = page.read_text(encoding="utf-8")
    assert page == tmp_path / "out" / "index.html"
    links = Links()
    links.feed(text)
    assert {"measurements.csv", "summary.parquet", "failures.csv", "batch.json", "page/rows-0.js"} <= set(links.targets)
    assert all((page.parent / unquote(target)).is_file() for target in links.targets)
    assert "<b> &" not in text
    assert "broken.png" in text
    assert "damaged" in text
    assert "3 images, segmented with seg/3" in text
    assert "2 images have no known pixel size" in text  # the network's is 1 micron
    assert text.count("<li>a &lt;b&gt; &amp; #1.png</li>") == 1
    assert "Several versions" not in text
    for described in ("gland: fraction of the area", "area_fraction_gland", "0 to 1", "Mean of the highest class"):
        assert described in text, described
    rows = read_rows(page)
    assert [row["title"] for row in rows] == ["a <b> & #1.png", "c.png"]
    for row in rows:
        assert (row["width"], row["height"], row["mpp"], row["unsized"]) == (50, 40, None, True)
        assert all((page.parent / file).is_file() for _, file in row["outputs"])
        for kind, size in (("image", 50), ("outlines", 320)):  # overlays of small images are enlarged
            with Image.open(page.parent / "page" / "thumbnails" / row[kind]) as thumbnail:
                assert max(thumbnail.size) == size


def test_page_of_a_batch_without_objects_and_images(tiny_network: Callable[..., Any], tmp_path: Path) -> None:
    engine = Engine(tiny_network(), tile=64, halo=8)
    summary = segment_batch(
        engine, [], tmp_path / "out", provenance=Provenance(model="m"), options=BatchOptions(outputs=["labels"])
    )
    text = write_batch_page(summary).read_text(encoding="utf-8")
    assert "0 images" in text
    assert "No image was segmented." in text
    assert "measurements.csv" not in text
    assert "<script" not in text


def test_page_warns_of_batch_out_of_distribution(tiny_network: Callable[..., Any], tmp_path: Path) -> None:
    engine = Engine(tiny_network(), tile=64, halo=8)
    summary = segment_batch(engine, [], tmp_path / "out", provenance=Provenance(model="m"))
    assert "out of distribution" not in write_batch_page(summary).read_text(encoding="utf-8")
    for scores, warned in (([0.4, 0.5, 1.6], False), ([0.4, 1.5, 1.6], True)):
        text = write_batch_page(replace(summary, ood=summarize_scores(scores))).read_text(encoding="utf-8")
        assert f"{sum(ood_score > 1 for ood_score in scores)} of 3 images are out of distribution" in text
        assert ("This batch is out of distribution" in text) == warned


def images(folder: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        write_png(folder / f"{number}.png", np.full((40, 50, 3), 200, np.uint8))
    return sorted(folder.iterdir())


def segment(network: Any, paths: list[Path], out: Path, model: str = "seg/3", **options: Any) -> Path:
    summary = segment_batch(
        Engine(network, tile=64, halo=8),
        paths,
        out,
        provenance=Provenance(model=model),
        options=BatchOptions(**options),
    )
    return write_batch_page(summary)


def test_page_names_the_versions_of_a_mixed_batch(tiny_network: Callable[..., Any], tmp_path: Path) -> None:
    paths, network = images(tmp_path / "images", 3), tiny_network()
    segment(network, paths[:2], tmp_path / "out", "seg/3")
    text = segment(network, paths, tmp_path / "out", "seg/4", keep_existing=True).read_text("utf-8")
    assert "2 images were segmented with seg/3, 1 images were segmented with seg/4" in text
    assert "Do not compare measurements of different versions" in text


def test_thumbnails_are_kept_renewed_and_removed(tiny_network: Callable[..., Any], tmp_path: Path) -> None:
    paths, network = images(tmp_path / "images", 3), tiny_network()
    folder = segment(network, paths, tmp_path / "out").parent / "page" / "thumbnails"
    names = sorted(file.name for file in folder.iterdir())
    assert names == [f"{n}.{kind}.jpg" for n in range(3) for kind in ("image", "outlines")]
    times = {name: (folder / name).stat().st_mtime_ns for name in names}
    os.utime(folder / "1.image.jpg", (1, 1))  # older than the record
    paths[2].unlink()
    segment(network, paths[:2], tmp_path / "out")
    assert sorted(file.name for file in folder.iterdir()) == names[:4]
    changed = {name for name in names[:4] if (folder / name).stat().st_mtime_ns != times[name]}
    assert changed == {"1.image.jpg"}


def test_page_of_images_that_are_gone_and_of_outputs_without_overlay(
    tiny_network: Callable[..., Any], tmp_path: Path
) -> None:
    paths = images(tmp_path / "images", 1)
    engine = Engine(tiny_network(), tile=64, halo=8)
    options = BatchOptions(outputs=["labels"])
    summary = segment_batch(engine, paths, tmp_path / "out", provenance=Provenance(model="seg/3"), options=options)
    paths[0].unlink()
    [row] = read_rows(write_batch_page(summary))
    assert (row["image"], row["outlines"]) == (None, None)


def test_data_of_many_images_are_in_several_files(
    tiny_network: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microseg.report.batch_page._ROWS", 2)
    paths, network = images(tmp_path / "images", 3), tiny_network()
    page = segment(network, paths, tmp_path / "out")
    assert [row["name"] for row in read_rows(page)] == ["0", "1", "2"]
    assert sorted(file.name for file in (page.parent / "page").glob("*.js")) == ["rows-0.js", "rows-1.js"]
    segment(network, paths[:1], tmp_path / "out")
    assert sorted(file.name for file in (page.parent / "page").glob("*.js")) == ["rows-0.js"]
