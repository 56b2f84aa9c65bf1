"""A slide gives the same outputs as the same image in memory, in files that other programs open."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import shapely
import tifffile
from openslide import OpenSlide
from PIL import Image

from microseg.datasets.appearance import APPEARANCE_FEATURES, image_features
from microseg.errors import DataError, ImageReadError, SettingsError
from microseg.inference import slide as slide_module
from microseg.inference.engine import Engine
from microseg.inference.image_files import BatchOptions
from microseg.inference.out_of_distribution import image_ood_score, slide_ood_score
from microseg.inference.slide import segment_slide, slide_strips
from microseg.models.reference_distribution import LabDistribution, ReferenceDistribution
from microseg.models.separation import separate_objects
from microseg.outputs import overlay, segmentation_writer
from microseg.outputs.colors import class_color
from microseg.outputs.record import Provenance, read_record
from microseg.outputs.segmentation import Segmentation
from microseg.slides.pixel_size import StatedMpp, image_mpp
from microseg.slides.readers import open_slide
from microseg.slides.slide import SlideView
from microseg.slides.tissue import TissueMap, find_tissue

Picture = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def tissue() -> Picture:
    """Glass with dark discs, some over one another: 1100 rows, 1400 columns; nothing in the right third."""
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:1100, :1400]
    pixels = np.full((1100, 1400, 3), 242, np.uint8)
    for cy, cx, radius in zip(rng.uniform(0, 1100, 40), rng.uniform(0, 850, 40), rng.uniform(5, 90, 40), strict=True):
        pixels[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = (150, 60, 120)
    return pixels


@pytest.fixture
def slide(tmp_path: Path, tissue: Picture) -> Path:
    path = tmp_path / "slide.tif"
    with tifffile.TiffWriter(path) as tiff:
        for step in (1, 2, 4):
            dots = (2e4 / step, 2e4 / step)  # a centimetre: half a micron
            options = {"resolution": dots, "resolutionunit": "CENTIMETER", "subfiletype": int(step > 1)}
            tiff.write(tissue[::step, ::step], tile=(256, 256), photometric="rgb", compression="zlib", **options)
    return path


@pytest.fixture
def darkness(brightness: Callable[..., object]) -> Callable[..., Engine]:
    """An engine that segments dark pixels."""

    def make(mpp: float | None = None, context: float = 0.0, **options: int) -> Engine:
        network = brightness(mpp=mpp, context=context)
        network.scale.data.neg_()  # type: ignore[attr-defined]
        return Engine(network, **({"tile": 256, "halo": 32} | options))  # type: ignore[arg-type]

    return make


def test_files_equal_those_of_the_whole_image(
    darkness: Callable[..., Engine], slide: Path, tissue: Picture, provenance: Provenance, tmp_path: Path
) -> None:
    engine, out = darkness(), tmp_path / "out"
    record = segment_slide(engine, slide, out, provenance=provenance)
    probabilities = engine.probabilities(tissue)
    whole = Segmentation(
        probabilities.argmax(0).astype(np.uint8), probabilities, engine.classes, 0.5, provenance, str(slide), "x"
    )
    assert (record.width, record.height, record.mpp, record.step) == (1400, 1100, 0.5, (1.0, 1.0))
    assert record == read_record(out / "slide.json")
    assert sorted(path.name for path in out.iterdir()) == [
        "slide.geojson",
        "slide.json",
        "slide.labels.tif",
        "slide.objects.csv",
        "slide.overlay.jpg",
    ]
    loaded = Segmentation.load(out)
    np.testing.assert_array_equal(loaded.mask, whole.mask)
    table = pd.read_csv(out / "slide.objects.csv")
    assert len(table) > 12
    inexact = ("mean_probability", "perimeter_px", "perimeter_um", "circularity")
    columns = [column for column in table if column not in inexact]
    pd.testing.assert_frame_equal(table[columns], whole.objects[columns], atol=1e-3, check_dtype=False)
    pd.testing.assert_frame_equal(loaded.objects[columns], whole.objects[columns])
    np.testing.assert_allclose(table["mean_probability"], whole.objects["mean_probability"], atol=2.1e-3)
    np.testing.assert_allclose(table["perimeter_px"], whole.objects["perimeter_px"], rtol=0.01)
    np.testing.assert_allclose(table["circularity"], whole.objects["circularity"], rtol=0.02)
    share = record.summary["tissue_fraction"]
    for name, value in whole.summary.items():
        if name.startswith(("area_fraction_", "objects_per_mm2_")):  # of the tissue, which is known of slides only
            assert value is not None
            assert share
            assert record.summary[name] == pytest.approx(value / share), name
        elif name not in ("mean_confidence", "mean_entropy", "tissue_mm2", "glass_mm2"):  # over the computed part only
            assert record.summary[name] == pytest.approx(value), name
    features = json.loads((out / "slide.geojson").read_text())["features"]
    shapes = shapely.from_geojson([json.dumps(feature["geometry"]) for feature in features])
    assert shapely.is_valid(shapes).all()
    assert shapely.equals(shapes, whole.polygons).all()
    assert {tuple(feature["properties"]["classification"]["color"]) for feature in features} == {class_color(1)}


@pytest.mark.parametrize("options", [{}, {"split": ("bright",)}])
def test_threads_do_not_change_files(
    darkness: Callable[..., Engine],
    slide: Path,
    provenance: Provenance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    monkeypatch.setattr(segmentation_writer, "PIECE", 2**15)  # 23 rows, so that borders cut objects
    files = []
    for threads in (1, 4):
        monkeypatch.setattr(slide_module, "_output_threads", lambda _, threads=threads: threads)
        out = tmp_path / str(threads)
        segment_slide(darkness(**options), slide, out, provenance=provenance)
        files.append({path.name: path.read_bytes() for path in out.iterdir() if path.suffix != ".json"})
    assert len(files[0]) == (5 if options else 4)
    assert files[0] == files[1]


def test_objects_are_divided_by_their_shape_where_the_settings_say_so(
    darkness: Callable[..., Engine], slide: Path, tissue: Picture, provenance: Provenance, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="split_touching"):
        darkness(split=("nuclei",))
    engine = darkness(split=("bright",))
    assert engine.parameters["split"] == ["bright"]
    record = segment_slide(
        engine, slide, tmp_path, provenance=provenance, options=BatchOptions(outputs=["labels", "objects"])
    )
    assert record.instances == ("bright",)
    loaded = Segmentation.load(tmp_path)
    expected = engine.label_objects(engine.outputs(tissue))
    np.testing.assert_array_equal(loaded.instances, expected)
    np.testing.assert_array_equal(loaded.instances, separate_objects(loaded.mask, None, engine.separation()))
    assert record.summary["objects_bright"] == expected.max() == len(pd.read_csv(tmp_path / "slide.objects.csv"))


def test_does_not_compute_glass(
    darkness: Callable[..., Engine], slide: Path, provenance: Provenance, tmp_path: Path
) -> None:
    engine, options = darkness(), BatchOptions(outputs=["labels"])
    skipping = segment_slide(engine, slide, tmp_path / "a", provenance=provenance, options=options)
    options = replace(options, skip_glass=False)
    everything = segment_slide(engine, slide, tmp_path / "b", provenance=provenance, options=options)
    assert everything.summary["computed_fraction"] == 1
    measured = ("tissue_fraction", "area_fraction_bright", "objects_per_mm2_bright")  # whatever was computed
    assert [everything.summary[name] for name in measured] == [skipping.summary[name] for name in measured]
    loaded = Segmentation.load(tmp_path / "b")
    assert [loaded.summary[name] for name in measured] == [skipping.summary[name] for name in measured]
    assert 0.3 < skipping.summary["computed_fraction"] < 0.8  # type: ignore[operator]
    assert 0.15 < skipping.summary["tissue_fraction"] < skipping.summary["computed_fraction"]  # type: ignore[operator]
    np.testing.assert_array_equal(Segmentation.load(tmp_path / "a").mask, Segmentation.load(tmp_path / "b").mask)


def test_label_image_is_a_pyramid_with_pixel_size(
    darkness: Callable[..., Engine], slide: Path, provenance: Provenance, tmp_path: Path
) -> None:
    segment_slide(darkness(), slide, tmp_path / "out", provenance=provenance, options=BatchOptions(outputs=["labels"]))
    path = tmp_path / "out" / "slide.labels.tif"
    mask = Segmentation.load(tmp_path / "out").mask
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_ome
        assert 'PhysicalSizeX="0.5"' in tiff.ome_metadata
        assert "bright" in tiff.ome_metadata
        levels = tiff.series[0].levels
        assert [level.shape for level in levels] == [(1100, 1400), (550, 700), (275, 350)]
        for number, level in enumerate(levels):
            step = 2**number
            np.testing.assert_array_equal(level.asarray(), mask[::step, ::step])
            top, bottom = level.keyframe.tags["XResolution"].value
            assert top / bottom == pytest.approx(2e4 / step)
            assert level.keyframe.is_tiled
    assert image_mpp(path) == 0.5
    with OpenSlide(str(path)) as peer:
        assert float(peer.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        assert peer.dimensions == (1400, 1100)
        y, x = np.argwhere(mask == 1)[5000]
        assert peer.read_region((int(x), int(y)), 0, (1, 1)).getpixel((0, 0))[:3] == class_color(1)
    with open_slide(path) as own:
        assert [level.downsample for level in own.levels] == [1, 2, 4]


@pytest.mark.parametrize(("given", "shape"), [(0.25, (550, 700)), (1.0, (2200, 2800))])
def test_slide_with_another_pixel_size(
    darkness: Callable[..., Engine],
    slide: Path,
    tissue: Picture,
    provenance: Provenance,
    tmp_path: Path,
    given: float,
    shape: tuple[int, int],
) -> None:
    """The label image has the model's pixel size; everything else is in pixels of the slide."""
    engine, out = darkness(mpp=0.5), tmp_path / "out"
    with pytest.raises(DataError, match=r"0\.5 microns of the file"):
        segment_slide(engine, slide, out, provenance=provenance, mpp=given)
    stated = StatedMpp(given, "images.csv", overrides=True)
    record = segment_slide(engine, slide, out, provenance=provenance, mpp=stated)
    loaded = Segmentation.load(out)
    assert loaded.mask.shape == shape
    assert image_mpp(out / "slide.labels.tif") == 0.5
    assert (record.width, record.height, record.mpp, record.step[0]) == (1400, 1100, given, 1400 / shape[1])
    dark = tissue[..., 0] < 200
    tissue_fraction = record.summary["tissue_fraction"]
    assert tissue_fraction
    assert record.summary["area_fraction_bright"] == pytest.approx(dark.mean() / tissue_fraction, rel=0.02)
    table = pd.read_csv(out / "slide.objects.csv")
    assert table["area_px"].sum() == pytest.approx(dark.sum(), rel=0.02)
    assert table["area_um2"].sum() == pytest.approx(dark.sum() * given**2, rel=0.02)
    np.testing.assert_allclose(loaded.objects["area_um2"], table["area_um2"], rtol=1e-3)
    features = json.loads((out / "slide.geojson").read_text())["features"]
    shapes = shapely.from_geojson([json.dumps(feature["geometry"]) for feature in features])
    assert shapely.is_valid(shapes).all()
    assert shapely.area(shapes).sum() == pytest.approx(dark.sum(), rel=0.02)
    center = shapely.centroid(shapes[0])
    assert (center.x, center.y) == pytest.approx((table["centroid_x_px"][0], table["centroid_y_px"][0]), abs=1.5)
    again = loaded.save(tmp_path / "again", image=tissue)
    assert read_record(again["record"]).width == 1400
    assert image_mpp(again["labels"]) == 0.5
    assert Segmentation.load(tmp_path / "again").mask.shape == shape


def test_overlay_shows_the_whole_slide(
    darkness: Callable[..., Engine],
    slide: Path,
    provenance: Provenance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(overlay, "_MOST", 1000)
    monkeypatch.setattr(overlay, "_SAMPLED", 500)
    segment_slide(
        darkness(), slide, tmp_path, provenance=provenance, options=BatchOptions(outputs=["overlay"]), name="o"
    )
    with Image.open(tmp_path / "o.overlay.jpg") as picture:
        assert picture.width / picture.height == pytest.approx(1400 / 1100, rel=0.01)
        pixels = np.asarray(picture, int)
    green = (pixels[..., 1] > pixels[..., 0] + 40) & (pixels[..., 1] > pixels[..., 2] + 40)
    assert green[:, : pixels.shape[1] * 2 // 3].mean() > 0.01
    assert green[:, pixels.shape[1] * 3 // 4 :].mean() == 0


def test_rejects_slide_without_pixel_size(
    darkness: Callable[..., Engine], tmp_path: Path, tissue: Picture, provenance: Provenance
) -> None:
    tifffile.imwrite(tmp_path / "slide.tif", tissue, tile=(256, 256))
    with pytest.raises(DataError, match=r"works at 0.5.*--mpp.*images.csv.*lab.yaml"):
        segment_slide(darkness(mpp=0.5), tmp_path / "slide.tif", tmp_path / "out", provenance=provenance)
    record = segment_slide(darkness(), tmp_path / "slide.tif", tmp_path / "out", provenance=provenance)
    assert record.mpp is None
    assert record.summary["area_mm2"] is None
    assert image_mpp(tmp_path / "out" / "slide.labels.tif") is None


def test_rejects_probabilities_of_a_slide(
    darkness: Callable[..., Engine], slide: Path, provenance: Provenance, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="too large"):
        segment_slide(
            darkness(),
            slide,
            tmp_path / "out",
            provenance=provenance,
            options=BatchOptions(outputs=["labels", "probabilities"]),
        )


def test_damaged_slide_leaves_earlier_files(
    darkness: Callable[..., Engine], slide: Path, provenance: Provenance, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    segment_slide(darkness(), slide, out, provenance=provenance)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with tifffile.TiffFile(slide) as tiff:
        offset = tiff.pages.first.dataoffsets[14]
    content = bytearray(slide.read_bytes())
    content[offset : offset + 40] = b"\xff" * 40
    slide.write_bytes(content)
    with pytest.raises(ImageReadError, match="damaged there"):
        segment_slide(darkness(), slide, out, provenance=provenance)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_strips_without_files(darkness: Callable[..., Engine], slide: Path, tissue: Picture) -> None:
    engine = darkness()
    with open_slide(slide) as opened:
        view, _, strips = slide_strips(engine, opened, None)
        mask = np.concatenate([part.mask for part in strips])
    assert mask.shape == (view.height, view.width) == tissue.shape[:2]
    np.testing.assert_array_equal(mask, engine.probabilities(tissue).argmax(0))


MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np, tifffile, torch
from torch import nn
from microseg.inference.engine import Engine
from microseg.outputs.record import Provenance
from microseg.inference.slide import segment_slide
from microseg.models.config import NetworkConfig
from microseg.models.heads import SemanticHead
from microseg.models.network import PyramidSegmenter

class Darkness(PyramidSegmenter):
    def __init__(self):
        nn.Module.__init__(self)
        self.config, self.stride = NetworkConfig(classes=("background", "dark")), 16
        self.scale = nn.Parameter(torch.tensor(8.0))
        self.head = SemanticHead((1,), classes=2)
        self.channels = self.config.classes

    def forward(self, x):
        level = 0.5 - x.mean(1, keepdim=True)
        return self.scale * torch.cat((-level, level), dim=1)

folder, engine = Path(sys.argv[1]), Engine(Darkness(), tile=512, halo=32)
y, x = np.mgrid[:512, :512]

def blocks(count):
    for number in range(count):
        radius = np.random.default_rng(number).uniform(20, 300)  # the larger ones reach into one another
        block = np.full((512, 512, 3), 240, np.uint8)
        block[((y % 128 - 64) ** 2 + (x % 128 - 64) ** 2 < radius**1.4)] = 60
        yield block

peaks = []
for number, rows in enumerate((2000, 2000, 20000)):
    path, shape = folder / f"{number}.tif", (rows, 2048, 3)
    tiles = blocks(4 * -(-rows // 512))
    tifffile.imwrite(path, tiles, shape=shape, dtype=np.uint8, tile=(512, 512), photometric="rgb")
    record = segment_slide(engine, path, folder / "out", provenance=Provenance(model="m"))
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
print(*peaks, record.summary["objects_dark"])
"""


@pytest.mark.long
def test_memory_does_not_grow_with_the_slide(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True, timeout=300
    )
    _, small, large, objects = map(int, done.stdout.split())
    assert objects > 1000
    assert large - small < 60, f"{small} MB for 4 megapixels, {large} MB for 41"  # as RGB alone, 110 MB more


def test_ood_score_of_a_slide_is_that_of_its_tissue(
    darkness: Callable[..., Engine], slide: Path, tissue: Picture, provenance: Provenance, tmp_path: Path
) -> None:
    figures = image_features(tissue[:, :900])  # where the discs are
    assert figures is not None
    reference = ReferenceDistribution(
        APPEARANCE_FEATURES, {"x": LabDistribution(5, figures, np.eye(len(figures)), 1.0)}
    )
    record = segment_slide(darkness(), slide, tmp_path / "out", provenance=provenance, reference=reference)
    ood_score = record.summary["ood_score"]
    assert ood_score is not None
    with open_slide(slide) as opened:
        assert slide_ood_score(reference, SlideView(opened), find_tissue(opened)) == ood_score
        assert slide_ood_score(None, SlideView(opened), find_tissue(opened)) is None
        nothing = TissueMap(np.zeros((4, 4), np.bool_))
        assert slide_ood_score(reference, SlideView(opened), nothing) is None
        other = image_ood_score(reference, 255 - tissue)
    assert other is not None
    assert ood_score < 0.5 < 1 < other
