from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

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
    assert len(links.targets) >= 2 * 6 + 6
    assert all((page.parent / unquote(target)).is_file() for target in links.targets)
    assert "<b> &" not in text
    assert "broken.png" in text
    assert "damaged" in text
    assert "3 images, segmented with seg/3" in text
    assert "2 images have no known pixel size" in text  # the network's is 1 micron


def test_page_of_a_batch_without_objects_and_images(tiny_network: Callable[..., Any], tmp_path: Path) -> None:
    engine = Engine(tiny_network(), tile=64, halo=8)
    summary = segment_batch(
        engine, [], tmp_path / "out", provenance=Provenance(model="m"), options=BatchOptions(outputs=["labels"])
    )
    text = write_batch_page(summary).read_text(encoding="utf-8")
    assert "0 images" in text
    assert "measurements.csv" not in text


def test_page_warns_of_batch_out_of_distribution(tiny_network: Callable[..., Any], tmp_path: Path) -> None:
    engine = Engine(tiny_network(), tile=64, halo=8)
    summary = segment_batch(engine, [], tmp_path / "out", provenance=Provenance(model="m"))
    assert "out of distribution" not in write_batch_page(summary).read_text(encoding="utf-8")
    for scores, warned in (([0.4, 0.5, 1.6], False), ([0.4, 1.5, 1.6], True)):
        text = write_batch_page(replace(summary, ood=summarize_scores(scores))).read_text(encoding="utf-8")
        assert f"{sum(ood_score > 1 for ood_score in scores)} of 3 images are out of distribution" in text
        assert ("This batch is out of distribution" in text) == warned
