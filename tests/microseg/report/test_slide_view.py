"""The view of a slide shows the image with the outlines at full resolution."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from microseg.outputs.colors import class_color
from microseg.outputs.overlay import draw_overlay
from microseg.outputs.record import Record
from microseg.outputs.segmentation_writer import SegmentationWriter
from microseg.outputs.writers import MaskStrip
from microseg.report.slide_view import write_slide_view
from microseg.slides.images import read_image
from tests.microseg.outputs.finding import image_info

SHAPE = (1100, 1300)


@pytest.fixture
def mask() -> npt.NDArray[np.uint8]:
    mask = np.zeros(SHAPE, np.uint8)
    mask[100:1000, 200:1250] = 1
    mask[500:600, 505:530] = 2  # crosses the border of two tiles
    mask[300:512, 20:180] = 1  # ends where a tile does
    mask[1024:1060, 20:180] = 1  # begins where a tile does
    return mask


@pytest.fixture
def record(mask: npt.NDArray[np.uint8], tmp_path: Path) -> Record:
    pixels = np.full((*SHAPE, 3), (220, 200, 210), np.uint8)
    tifffile.imwrite(tmp_path / "slide.tif", pixels, tile=(256, 256), photometric="rgb", compression="zlib")
    source = str(tmp_path / "slide.tif")
    info = image_info(mask, source=source, name="slide", mpp=0.5)
    (tmp_path / "out").mkdir()
    with SegmentationWriter(tmp_path / "out", info, ["labels"], lambda _: pixels, slide=True) as writer:
        writer.add(MaskStrip(0, mask, None))
        return writer.finish(None, seconds=None, summary={"tissue_fraction": 1.0}, tissue=1.0)


def test_tiles_are_the_slide_with_its_outlines(record: Record, mask: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    folder = tmp_path / "views"
    assert write_slide_view(record, tmp_path / "out", folder) == "slide.html"
    pixels = np.full((*SHAPE, 3), (220, 200, 210), np.uint8)
    whole = draw_overlay(pixels, mask, least=1, thin=True).astype(int)
    finest = folder / "slide_files" / "11"
    shown = np.zeros((*SHAPE, 3), int)
    for file in finest.iterdir():
        column, row = (512 * int(part) for part in file.stem.split("_"))
        tile = read_image(file)
        shown[row : row + len(tile), column : column + tile.shape[1]] = tile
    assert len(list(finest.iterdir())) == 9
    assert np.abs(shown - whole).mean() < 2  # JPEG
    assert np.abs(shown[550, 505] - class_color(2)).max() < 90
    for border in (512, 1024):  # of two rows of tiles
        rows = slice(border - 3, border + 3)
        assert np.abs(shown[rows, 20:180] - whole[rows, 20:180]).mean() < 8
    assert 'TileSize="512"' in (folder / "slide.dzi").read_text()
    shapes = [read_image(folder / "slide_files" / str(level) / "0_0.jpg").shape[:2] for level in (10, 9, 1, 0)]
    assert shapes == [(512, 512), (275, 325), (2, 2), (1, 1)]


def test_finished_views_are_kept_and_images_have_none(
    record: Record, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "views"
    page = folder / str(write_slide_view(record, tmp_path / "out", folder))
    changed = page.stat().st_mtime_ns
    write_slide_view(record, tmp_path / "out", folder)
    assert page.stat().st_mtime_ns == changed
    image = record.model_copy(update={"summary": {}, "name": "other", "created": datetime.now(UTC)})
    assert write_slide_view(image, tmp_path / "out", folder) is None
    missing = record.model_copy(update={"source": "gone.tif", "name": "gone"})
    (tmp_path / "out" / "gone.json").write_text("{}")
    assert write_slide_view(missing, tmp_path / "out", folder) is None
    assert "The view of gone.tif was not written" in caplog.text
