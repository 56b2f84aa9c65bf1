"""Analytic shapes → a file of each format → pixels."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import shapely
from rasterio.features import rasterize

from microseg.annotations.classes import IGNORE, LabelClasses
from microseg.annotations.files import AnnotatedImage
from microseg.annotations.formats import read_annotation, write_annotation
from microseg.annotations.outlines import Outlines, ellipse
from microseg.annotations.rasterize import draw_polygons

CLASSES = LabelClasses(("background", "gland", "tumor"), regions=None)
IMAGE = AnnotatedImage("a.png", 400, 300)
FORMATS = {"geojson": ".geojson", "imagescope": ".xml", "asap": ".xml", "coco": ".json", "labelme": ".json"}


def shapes() -> tuple[tuple[str, ...], list[shapely.Polygon], npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Names and outlines of shapes, and their pixels by their formulas."""
    y, x = np.mgrid[:300, :400] + 0.5
    ring = shapely.Polygon(ellipse(20, 20, 140, 140), [ellipse(50, 50, 110, 110)[::-1]])
    square = shapely.box(200, 30, 300, 90)
    oval = shapely.Polygon(ellipse(220, 110, 380, 210))
    parts = shapely.union_all([shapely.box(10, 200, 50, 240), shapely.box(60, 200, 90, 280)])
    triangle = shapely.Polygon([(150.25, 220.5), (260.75, 290.25), (150.25, 290.25)])
    inside = [
        (np.hypot(x - 80, y - 80) < 60) & (np.hypot(x - 80, y - 80) >= 30),
        (x > 200) & (x < 300) & (y > 30) & (y < 90),
        ((x - 300) / 80) ** 2 + ((y - 160) / 50) ** 2 < 1,
        ((x > 10) & (x < 50) & (y > 200) & (y < 240)) | ((x > 60) & (x < 90) & (y > 200) & (y < 280)),
        (x > 150.25) & (y < 290.25) & ((y - 220.5) * (260.75 - 150.25) > (x - 150.25) * (290.25 - 220.5)),
    ]
    names = ("gland", "tumor", "gland", "tumor", "gland")
    classes, instances = np.zeros((300, 400), np.uint8), np.zeros((300, 400), np.int32)
    for number, (name, mask) in enumerate(zip(names, inside, strict=True), start=1):
        classes[mask], instances[mask] = CLASSES.names.index(name), number
    return names, [ring, square, oval, parts, triangle], classes, instances


@pytest.mark.parametrize("name", FORMATS)
def test_shapes_come_back_as_their_pixels(name: str, tmp_path: Path) -> None:
    names, polygons, classes, instances = shapes()
    path = tmp_path / "annotations" / f"a{FORMATS[name]}"
    path.parent.mkdir()
    write_annotation(path, Outlines(names, np.array(polygons)), IMAGE, name)
    labels = read_annotation(path, IMAGE, CLASSES)
    found = labels.read()
    assert found.instances is not None
    for index in (1, 2):
        truth, drawn = classes == index, found.classes == index
        assert (truth & drawn).sum() / (truth | drawn).sum() >= 0.99
    objects = [set(np.unique(found.instances[instances == number]).tolist()) - {0} for number in range(1, 6)]
    assert all(len(each) == 1 for each in objects)  # each object is one object …
    assert len(set.union(*objects)) == 5  # … and another one than the others
    for number, each in enumerate(objects, start=1):
        truth, drawn = instances == number, found.instances == each.pop()
        assert (truth & drawn).sum() / (truth | drawn).sum() >= 0.99


def test_pixels_are_those_of_an_independent_implementation() -> None:
    """GDAL draws the pixels whose centers are inside, too."""
    rng = np.random.default_rng(0)
    polygons = []
    for _ in range(200):
        angle = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 12)))
        radius = rng.uniform(2, 30, len(angle))
        points = rng.uniform(-10, 120, 2) + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        polygon = shapely.make_valid(shapely.Polygon(points), method="structure", keep_collapsed=False)
        if polygon.area:
            polygons.append(polygon)
    ours = np.zeros((100, 110), np.int32)
    draw_polygons(ours, np.array(polygons), np.arange(1, len(polygons) + 1, dtype=np.int32))
    theirs = rasterize(zip(polygons, range(1, len(polygons) + 1), strict=True), ours.shape, dtype=np.int32)
    assert np.array_equal(ours, theirs)


def test_polygons_that_share_edges_share_no_pixel() -> None:
    rng = np.random.default_rng(1)
    cells = shapely.get_parts(shapely.voronoi_polygons(shapely.multipoints(rng.uniform(0, 64, (80, 2)))))
    cells = shapely.intersection(cells, shapely.box(0, 0, 64, 64))
    counts = np.zeros((64, 64), np.int64)
    for cell in cells:
        one = np.zeros((64, 64), np.uint8)
        draw_polygons(one, np.array([cell]), np.ones(1, np.uint8))
        counts += one
    assert (counts == 1).all()


@pytest.mark.parametrize("scale", [1.0, 0.5, 2.0])
def test_a_region_equals_that_part_of_the_whole(scale: float, tmp_path: Path) -> None:
    names, polygons, _, _ = shapes()
    path = tmp_path / "annotations" / "a.geojson"
    path.parent.mkdir()
    write_annotation(path, Outlines(names, np.array(polygons)), IMAGE)
    labels = read_annotation(path, IMAGE, CLASSES)
    whole, part = labels.read(scale=scale), labels.read(100, 60, 160, 120, scale=scale)
    rows, columns = (slice(int(start * scale), int(stop * scale)) for start, stop in ((60, 180), (100, 260)))
    assert np.array_equal(part.classes, whole.classes[rows, columns])
    assert whole.instances is not None
    assert np.array_equal(part.instances, whole.instances[rows, columns])


def test_a_coarse_level_has_the_label_at_the_center_of_its_pixels(tmp_path: Path) -> None:
    names, polygons, _, _ = shapes()
    path = tmp_path / "annotations" / "a.geojson"
    path.parent.mkdir()
    write_annotation(path, Outlines(names, np.array(polygons)), IMAGE)
    labels = read_annotation(path, IMAGE, CLASSES)
    assert np.array_equal(labels.read(scale=0.2).classes, labels.read().classes[2::5, 2::5])


def test_ignored_areas_and_regions(tmp_path: Path) -> None:
    outlines = Outlines(
        ("Region*", "gland", "Ignore*", "gland"),
        np.array([shapely.box(*box) for box in ((10, 10, 60, 60), (20, 20, 30, 90), (25, 25, 40, 40), (80, 0, 90, 9))]),
    )
    path = tmp_path / "annotations" / "a.geojson"
    path.parent.mkdir()
    write_annotation(path, outlines, IMAGE)
    labels = read_annotation(path, IMAGE, LabelClasses(("background", "gland")))
    expected = np.full((300, 400), IGNORE, np.uint8)
    expected[10:60, 10:60] = 0
    expected[20:60, 20:30] = 1
    expected[25:40, 25:40] = IGNORE
    found = labels.read()
    assert np.array_equal(found.classes, expected)
    assert found.instances is not None
    assert np.array_equal(found.instances, (expected == 1).astype(np.int32))
    assert labels.known_boxes() == [(10, 10, 60, 60)]
