import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import shapely
import tifffile
from PIL import Image
from rasterio.features import rasterize

from microseg.annotations.index_masks import read_mask
from microseg.errors import DataError, NoSpaceError, SettingsError
from microseg.files import file_sha256
from microseg.inference.engine import Engine
from microseg.inference.single_image import segment_file
from microseg.outputs.colors import class_color
from microseg.outputs.measurements import ObjectTableWriter
from microseg.outputs.record import Provenance, read_record
from microseg.outputs.segmentation import Segmentation
from microseg.slides.images import write_png
from microseg.slides.pixel_size import image_mpp

ALL = ("labels", "outlines", "overlay", "objects", "probabilities")


@pytest.fixture
def source(tmp_path: Path, squares: npt.NDArray[np.uint8]) -> Path:
    write_png(tmp_path / "slide 1.png", squares)
    return tmp_path / "slide 1.png"


@pytest.fixture
def segmentation(engine: Engine, source: Path, provenance: Provenance) -> Segmentation:
    return segment_file(engine, source, provenance=provenance, mpp=0.5)


def test_loaded_segmentation_equals_the_saved_one(segmentation: Segmentation, tmp_path: Path) -> None:
    files = segmentation.save(tmp_path / "out", ALL)
    for loaded in (Segmentation.load(tmp_path / "out"), Segmentation.load(files["record"])):
        np.testing.assert_array_equal(loaded.mask, segmentation.mask)
        assert loaded.probabilities is not None
        np.testing.assert_array_equal(loaded.probabilities, segmentation.probabilities)
        for field in ("classes", "mpp", "provenance", "source", "source_sha256", "seconds"):
            assert getattr(loaded, field) == getattr(segmentation, field), field
        pd.testing.assert_frame_equal(loaded.objects, segmentation.objects)


def test_files_are_named_after_the_image(segmentation: Segmentation, tmp_path: Path) -> None:
    files = segmentation.save(tmp_path / "out")
    assert {kind: path.name for kind, path in files.items()} == {
        "labels": "slide 1.labels.tif",
        "outlines": "slide 1.geojson",
        "overlay": "slide 1.overlay.jpg",
        "objects": "slide 1.objects.csv",
        "record": "slide 1.json",
    }
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in files.values())


def test_label_image_has_pixel_size_classes_and_colors(segmentation: Segmentation, tmp_path: Path) -> None:
    path = segmentation.save(tmp_path / "out")["labels"]
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        np.testing.assert_array_equal(page.asarray(), segmentation.mask)
        assert page.tags["ResolutionUnit"].value == 3  # centimetre
        assert [n / d for n, d in (page.tags["XResolution"].value, page.tags["YResolution"].value)] == [20_000, 20_000]
        assert tiff.is_ome
        xml = ElementTree.fromstring(tiff.ome_metadata or "")
        labels = [element.text for element in xml.iter() if element.tag.endswith("}M")]
        assert labels == ["background", "bright"]
    assert image_mpp(path) == 0.5
    np.testing.assert_array_equal(read_mask(path), segmentation.mask)
    with Image.open(path) as image:
        assert image.convert("RGB").getpixel((11, 6)) == class_color(1)


def test_files_are_reproducible(segmentation: Segmentation, tmp_path: Path) -> None:
    first, second = segmentation.save(tmp_path / "a", ALL), segmentation.save(tmp_path / "b", ALL)
    for output in ALL:
        assert first[output].read_bytes() == second[output].read_bytes(), output


def test_label_image_without_pixel_size(engine: Engine, source: Path, provenance: Provenance, tmp_path: Path) -> None:
    path = segment_file(engine, source, provenance=provenance).save(tmp_path / "out")["labels"]
    assert image_mpp(path) is None


def test_outlines_and_table_have_the_same_objects(segmentation: Segmentation, tmp_path: Path) -> None:
    files = segmentation.save(tmp_path / "out")
    features = json.loads(files["outlines"].read_text())["features"]
    table = pd.read_csv(files["objects"])
    assert table["image"].tolist() == ["slide 1.png"] * 2
    assert table["area_px"].tolist() == [96, 16]
    assert table["area_um2"].tolist() == [24, 4]
    assert [f["properties"]["measurements"]["Area µm^2"] for f in features] == [24, 4]
    assert [shapely.from_geojson(json.dumps(f["geometry"])).area for f in features] == [96, 16]
    back = rasterize([(f["geometry"], 1) for f in features], out_shape=segmentation.mask.shape, dtype=np.uint8)
    np.testing.assert_array_equal(back, segmentation.mask)


def test_record_has_image_model_run_data_and_code(
    segmentation: Segmentation, source: Path, engine: Engine, tmp_path: Path
) -> None:
    record = read_record(segmentation.save(tmp_path / "out")["record"])
    assert record.source == str(source.resolve())
    assert record.source_sha256 == file_sha256(source)
    assert (record.width, record.height, record.mpp) == (60, 40, 0.5)
    assert record.provenance.model == "microseg-segmenter/3"
    assert record.provenance.run_id == "r1"
    assert record.provenance.datasets == {"lab_a": "0a1b.dir"}
    assert record.provenance.commit == "c0ffee"
    assert record.provenance.weights_sha256 == engine.weights_sha256
    assert record.provenance.inference == {"tile": 128, "halo": 16, "half": False, "model_mpp": None}
    assert record.summary["objects_bright"] == 2
    assert {"python", "torch"} <= record.software.keys()


def test_saving_again_replaces_all_files(segmentation: Segmentation, tmp_path: Path) -> None:
    out = tmp_path / "out"
    segmentation.save(out)
    segmentation.save(out, ["labels"])
    assert sorted(p.name for p in out.iterdir()) == ["slide 1.json", "slide 1.labels.tif"]


def test_failure_while_writing_keeps_the_earlier_files(
    segmentation: Segmentation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    segmentation.save(out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def fail(*_args: object, **_options: object) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(ObjectTableWriter, "add_objects", fail)
    with pytest.raises(RuntimeError, match="killed"):
        segmentation.save(out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_failure_between_two_files_leaves_no_mixture(
    segmentation: Segmentation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, replace, moved = tmp_path / "out", Path.replace, list[Path]()
    segmentation.save(out)

    def full(self: Path, target: Path) -> Path:
        moved.append(target)
        if len(moved) == 3:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        with pytest.raises(NoSpaceError, match="the disk is full"):
            segmentation.save(out)
    assert list(out.iterdir()) == []
    assert segmentation.save(out)["record"].name == "slide 1.json"


def test_saves_segmentation_of_an_array(provenance: Provenance, tmp_path: Path) -> None:
    mask = np.eye(5, dtype=np.uint8)
    segmentation = Segmentation(mask, None, ("background", "gland"), None, provenance, "field 7")
    for _ in range(2):
        files = segmentation.save(tmp_path, ["labels", "objects"])
        assert files["labels"] == tmp_path / "field 7.labels.tif"
    assert Segmentation.load(tmp_path).source_sha256 is None
    with pytest.raises(SettingsError, match="probabilities"):
        segmentation.save(tmp_path, ["probabilities"])


def test_large_images_are_tiled(provenance: Provenance, tmp_path: Path) -> None:
    probabilities = np.random.default_rng(0).dirichlet([1, 1, 1], (2100, 30)).astype(np.float32).transpose(2, 0, 1)
    mask = probabilities.argmax(0).astype(np.uint8)
    segmentation = Segmentation(mask, probabilities, ("background", "gland", "stroma"), 0.25, provenance, "wide")
    segmentation.save(tmp_path, ["labels", "probabilities"])
    with tifffile.TiffFile(tmp_path / "wide.labels.tif") as tiff:
        assert tiff.pages.first.is_tiled
    loaded = Segmentation.load(tmp_path)
    np.testing.assert_array_equal(loaded.mask, mask)
    np.testing.assert_array_equal(loaded.probabilities, probabilities)


def test_loading_reports_missing_and_damaged_files(segmentation: Segmentation, tmp_path: Path) -> None:
    out = tmp_path / "out"
    segmentation.save(out, ["objects"])
    with pytest.raises(DataError, match="label image"):
        Segmentation.load(out)
    files = segmentation.save(out)
    files["labels"].write_bytes(files["labels"].read_bytes()[:100])
    with pytest.raises(DataError, match="TIFF"):
        Segmentation.load(out)
