"""Files of outlines as other programs write them, and files that must be refused."""

import base64
import gzip
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from microseg.annotations import files
from microseg.annotations.classes import IGNORE, LabelClasses
from microseg.annotations.coco import decode_runs
from microseg.annotations.files import AnnotatedImage
from microseg.annotations.formats import read_annotation
from microseg.annotations.labels import Labels
from microseg.errors import ImageReadError

IMAGE = AnnotatedImage("slide 7.svs", 40, 30, mpp=0.5)
CLASSES = LabelClasses(("background", "gland"), {"gland": ("Gland, benign",)}, regions=None)
SQUARE = [[10, 5], [20, 5], [20, 15], [10, 15], [10, 5]]


def read(tmp_path: Path, content: Any, name: str = "slide 7.geojson", classes: LabelClasses = CLASSES) -> Labels:
    path = tmp_path / "annotations" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read_annotation(path, IMAGE, classes)


def box(left: int, top: int, right: int, bottom: int, value: int = 1) -> npt.NDArray[np.uint8]:
    labels = np.zeros((30, 40), np.uint8)
    labels[top:bottom, left:right] = value
    return labels


def feature(ring: Any = SQUARE, name: str | None = "gland", kind: str = "Polygon", **properties: Any) -> dict[str, Any]:
    stated = {"classification": None if name is None else {"name": name}, **properties}
    coordinates = [ring] if kind == "Polygon" else ring
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": stated}


QUPATH_03 = {
    "type": "Feature",
    "id": "PathDetectionObject",
    "geometry": {"type": "Polygon", "coordinates": [SQUARE]},
    "properties": {
        "object_type": "detection",
        "isLocked": True,
        "classification": {"name": "Gland, benign", "colorRGB": -377282},
        "measurements": [{"name": "Area", "value": 100.0}],
    },
}
QUPATH_06 = feature(objectType="annotation", measurements={"Area": 100.0}, name="1")
QUPATH_06["properties"]["classification"] = {"names": ["gland"], "color": [200, 0, 0]}


@pytest.mark.parametrize(
    "content",
    [
        {"type": "FeatureCollection", "features": [QUPATH_03]},
        [QUPATH_06],
        QUPATH_06,
        gzip.compress(json.dumps([QUPATH_03]).encode()),
        b"\xef\xbb\xbf" + json.dumps([QUPATH_03]).encode(),
    ],
)
def test_variants_of_qupath(content: Any, tmp_path: Path) -> None:
    found = read(tmp_path, content)
    assert np.array_equal(found.read().classes, box(10, 5, 20, 15))
    assert found.notes == ()


def of_image(name: str, **metadata: str) -> dict[str, Any]:
    """An object as microseg writes it and QuPath keeps it."""
    return feature(metadata={"model": "microseg-segmenter/3", "image": name, **metadata})


@pytest.mark.parametrize("name", ["slide 7.svs", "SLIDE 7.ome.zarr", "slide 7.zarr.url", "slide 7"])
def test_objects_that_state_this_image_are_read(name: str, tmp_path: Path) -> None:
    assert read(tmp_path, [of_image(name)]).read().classes.any()
    copied = read(tmp_path, [of_image(name), of_image("slide 8.svs"), of_image("slide 8.svs"), feature()])
    assert copied.read().classes.any()
    assert copied.notes == ("found by microseg in another image, slide 8.svs, and copied from it: 2",)


def test_objects_that_microseg_found_in_another_image_are_refused(tmp_path: Path) -> None:
    drawn = feature([[1, 1], [4, 1], [4, 4], [1, 1]])
    with pytest.raises(ImageReadError, match=r"expected annotations of slide 7\.svs, got those of slide 8\.svs"):
        read(tmp_path, [drawn, of_image("slide 8.svs")])
    other = feature(metadata={"image": "batch 3"})  # of another program
    assert read(tmp_path, [other]).read().classes.any()


def test_the_content_decides_not_the_suffix(tmp_path: Path) -> None:
    assert np.array_equal(read(tmp_path, [QUPATH_03], "slide 7.json").read().classes, box(10, 5, 20, 15))
    assert np.array_equal(read(tmp_path, [QUPATH_03], "slide 7.xml").read().classes, box(10, 5, 20, 15))


def test_an_unknown_name_lists_all_and_the_line_to_add(tmp_path: Path) -> None:
    content = [feature(name="Tumor"), feature(name=None), feature(name="Tumor"), feature()]
    with pytest.raises(ImageReadError, match=r"'Tumor' \(2\), 'unclassified' \(1\)") as error:
        read(tmp_path, content)
    assert 'classes: {gland: ["Gland, benign", "Tumor", "unclassified"]}' in str(error.value)
    assert 'ignored_classes: ["Ignore*", "Tumor", "unclassified"]' in str(error.value)


def test_names_mean_classes_background_or_ignored_areas(tmp_path: Path) -> None:
    classes = LabelClasses(
        ("background", "gland"), {"background": ("Stroma",), "gland": ("unclassified",)}, None, ("Necrosis",)
    )
    content = [
        feature([[0, 0], [30, 0], [30, 20], [0, 20]], name=None),
        feature(name="stroma"),
        feature([[0, 0], [5, 0], [5, 5], [0, 5]], name="Necrosis"),
    ]
    expected = box(0, 0, 30, 20)
    expected[5:15, 10:20] = 0
    expected[:5, :5] = IGNORE
    assert np.array_equal(read(tmp_path, content, classes=classes).read().classes, expected)


def test_objects_without_a_region_are_no_labels(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match=r"expected an annotated region \(Region\*\).*regions: image"):
        read(tmp_path, [feature()], classes=LabelClasses(("background", "gland")))


def test_points_lines_and_other_planes_are_counted(tmp_path: Path) -> None:
    content = [feature(), feature([1, 2], kind="Point"), feature([[1, 2], [3, 4]], kind="LineString"), feature()]
    content[3]["geometry"]["plane"] = {"c": -1, "z": 2, "t": 0}
    content.append(feature(objectType="tmaCore"))
    found = read(tmp_path, content)
    assert np.array_equal(found.read().classes, box(10, 5, 20, 15))
    assert set(found.notes) == {
        "points, not used: 1",
        "lines, not used: 1",
        "objects on other planes or at other times, not used: 1",
        "TMA cores, not used: 1",
    }


def test_cells_need_a_statement_which_outline_is_meant(tmp_path: Path) -> None:
    cell = feature(objectType="cell") | {
        "nucleusGeometry": {"type": "Polygon", "coordinates": [[[12, 7], [15, 7], [15, 9], [12, 9]]]}
    }
    with pytest.raises(ImageReadError, match="cells: nucleus"):
        read(tmp_path, [cell])
    for cells, expected in (("nucleus", box(12, 7, 15, 9)), ("boundary", box(10, 5, 20, 15))):
        classes = LabelClasses(("background", "gland"), regions=None, cells=cells)  # type: ignore[arg-type]
        assert np.array_equal(read(tmp_path, [cell], classes=classes).read().classes, expected)


def test_self_intersection_is_repaired_and_keeps_both_lobes(tmp_path: Path) -> None:
    found = read(tmp_path, [feature([[10, 10], [20, 20], [20, 10], [10, 20]])])
    drawn = found.read().classes
    assert abs(int(drawn.sum()) - 50) <= 10
    assert drawn[15, 11] == drawn[15, 18] == 1
    assert found.notes == ("outlines that intersect themselves, repaired: 1",)


def test_smaller_objects_are_on_top_whatever_their_order(tmp_path: Path) -> None:
    classes = LabelClasses(("background", "a", "b"), regions=None)
    large, small = feature([[0, 0], [30, 0], [30, 20], [0, 20]], name="a"), feature(name="b")
    for content in ([large, small], [small, large]):
        drawn = read(tmp_path, content, classes=classes).read()
        expected = box(0, 0, 30, 20)
        expected[5:15, 10:20] = 2
        assert np.array_equal(drawn.classes, expected)
        assert drawn.instances is not None
        assert len(np.unique(drawn.instances)) == 3


def test_outlines_beyond_the_border_are_clipped_and_counted(tmp_path: Path) -> None:
    found = read(tmp_path, [feature([[-5, -5], [12, -5], [12, 8], [-5, 8]]), feature()])
    assert found.notes == ("clipped at the image's border: 1",)
    expected = box(10, 5, 20, 15)
    expected[:8, :12] = 1
    assert np.array_equal(found.read().classes, expected)


def test_outlines_of_a_larger_image_are_refused(tmp_path: Path) -> None:
    elsewhere = [feature([[x + 400, 300], [x + 410, 300], [x + 410, 310]]) for x in range(3)]
    with pytest.raises(ImageReadError, match=r"3 of 4 outside of it .*another image or level"):
        read(tmp_path, [feature(), *elsewhere])


@pytest.mark.parametrize(
    ("stated", "factor"),
    [({"units": "um"}, 2), ({"units": "pixel", "downsample": 2}, 2), ({"mpp": 1.0}, 2), ({"mpp": 0.5001}, 1)],
)
def test_geojson_of_another_unit_or_level_is_converted(stated: dict[str, Any], factor: int, tmp_path: Path) -> None:
    ring = (np.array(SQUARE) / factor).tolist()
    content = {"type": "FeatureCollection", "features": [feature(ring)], **stated}
    assert np.array_equal(read(tmp_path, content).read().classes, box(10, 5, 20, 15))


def test_geojson_of_an_unknown_unit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match="in pixels or um, got 'inch'"):
        read(tmp_path, {"type": "FeatureCollection", "features": [feature()], "units": "inch"})


# ---- XML


def vertices(*points: tuple[float, float]) -> str:
    return "<Vertices>" + "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in points) + "</Vertices>"


def imagescope(*regions: str, mpp: float = 0.5, name: str = "gland", color: int = 65280) -> bytes:
    layer = f'<Annotation Id="1" Name="{name}" LineColor="{color}"><Attributes>'
    layer += '<Attribute Name="Description" Id="0" Value=""/></Attributes><Regions><RegionAttributeHeaders/>'
    return (
        f'<Annotations MicronsPerPixel="{mpp}">{layer}{"".join(regions)}</Regions></Annotation></Annotations>'.encode()
    )


def region(kind: int, *points: tuple[float, float], negative: int = 0) -> str:
    return f'<Region Id="1" Type="{kind}" NegativeROA="{negative}" Text="">{vertices(*points)}</Region>'


OUTER = ((2, 2), (30, 2), (30, 22), (2, 22))


def test_imagescope_cuts_negative_regions_out(tmp_path: Path) -> None:
    content = imagescope(region(0, *OUTER), region(1, (10, 5), (20, 5), (20, 15), (10, 15), negative=1))
    expected = box(2, 2, 30, 22)
    expected[5:15, 10:20] = 0
    assert np.array_equal(read(tmp_path, content, "slide 7.xml").read().classes, expected)


def test_imagescope_ellipse_and_ruler(tmp_path: Path) -> None:
    found = read(tmp_path, imagescope(region(2, (5, 5), (35, 25)), region(4, (1, 1), (9, 9))), "slide 7.xml")
    y, x = np.mgrid[:30, :40] + 0.5
    truth = ((x - 20) / 15) ** 2 + ((y - 15) / 10) ** 2 < 1
    drawn = found.read().classes == 1
    assert (truth & drawn).sum() / (truth | drawn).sum() > 0.99
    assert found.notes == ("rulers, not used: 1",)


def test_imagescope_layers_without_name_are_named_by_their_color(tmp_path: Path) -> None:
    content = imagescope(region(0, *OUTER), name="", color=0x0000FF)  # blue, green, red
    with pytest.raises(ImageReadError, match=r"'#ff0000' \(1\)"):
        read(tmp_path, content, "slide 7.xml")
    classes = LabelClasses(("background", "gland"), {"gland": ("#FF0000",)}, regions=None)
    assert read(tmp_path, content, "slide 7.xml", classes).read().classes.sum() == 28 * 20


def test_imagescope_of_another_level_is_converted(tmp_path: Path) -> None:
    content = imagescope(region(0, *((x / 2, y / 2) for x, y in OUTER)), mpp=1.0)
    assert np.array_equal(read(tmp_path, content, "slide 7.xml").read().classes, box(2, 2, 30, 22))


def test_asap_groups_and_points(tmp_path: Path) -> None:
    def annotation(kind: str, group: str) -> str:
        points = "".join(f'<Coordinate Order="{n}" X="{x}" Y="{y}"/>' for n, (x, y) in enumerate(OUTER))
        return (
            f'<Annotation Name="1" Type="{kind}" PartOfGroup="{group}"><Coordinates>{points}</Coordinates></Annotation>'
        )

    drawn = annotation("Polygon", "gland") + annotation("Dot", "None")
    content = f"<?xml version='1.0'?><ASAP_Annotations><Annotations>{drawn}</Annotations></ASAP_Annotations>".encode()
    found = read(tmp_path, content, "slide 7.xml")
    assert np.array_equal(found.read().classes, box(2, 2, 30, 22))
    assert found.notes == ("points, not used: 1",)
    with pytest.raises(ImageReadError, match="unclassified"):
        read(tmp_path, content.replace(b"Dot", b"Spline"), "slide 7.xml")


# ---- COCO and labelme


def coco(*outlines: Any, **entry: Any) -> dict[str, Any]:
    annotations = [
        {"id": n, "image_id": 3, "category_id": 7, "segmentation": it, "iscrowd": 0} for n, it in enumerate(outlines)
    ]
    image = {"id": 3, "file_name": "slide 7.png", "width": 40, "height": 30} | entry
    return {"images": [image], "categories": [{"id": 7, "name": "gland"}], "annotations": annotations}


def test_coco_polygons_and_run_lengths(tmp_path: Path) -> None:
    mask = box(10, 5, 20, 15).astype(bool)
    mask[8:10, 12:14] = False
    column = mask.T.ravel().astype(int)
    cuts = np.flatnonzero(np.diff(column)) + 1
    runs = np.diff([0, *cuts.tolist(), column.size]).tolist()
    found = read(tmp_path, coco([[30, 0, 35, 0, 35, 5, 30, 5]], {"size": [30, 40], "counts": runs}), "slide 7.json")
    expected = mask.astype(np.uint8)
    expected[:5, 30:35] = 1
    drawn = found.read()
    assert np.array_equal(drawn.classes, expected)
    assert drawn.instances is not None
    assert drawn.instances[2, 32] == 1
    assert drawn.instances[6, 11] == 2


def test_compressed_runs_are_those_of_pycocotools() -> None:
    # pycocotools.mask.encode of a 9 x 9 mask with [2:5, 3:7] set gives these counts
    assert decode_runs("m03600000`0") == [29, 3, 6, 3, 6, 3, 6, 3, 22]
    for broken in ("m0360\x7f", "o"):
        with pytest.raises(ImageReadError, match="expected"):
            decode_runs(broken)


def test_coco_crowds_are_ignored_and_boxes_counted(tmp_path: Path) -> None:
    content = coco([[30, 0, 35, 0, 35, 5, 30, 5]], [np.array(SQUARE).ravel().tolist()], [])
    content["annotations"][1]["iscrowd"] = 1
    found = read(tmp_path, content, "slide 7.json")
    expected = box(30, 0, 35, 5)
    expected[5:15, 10:20] = IGNORE
    assert np.array_equal(found.read().classes, expected)
    assert found.notes == ("boxes without outline, not used: 1",)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"file_name": "slide 8.png"}, "of slide 7.svs, got those of slide 8.png"),
        ({"width": 40, "height": 40}, "an image of 40 x 30 pixels, got 40 x 40"),
    ],
)
def test_coco_of_another_image_is_refused(entry: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match=message):
        read(tmp_path, coco([np.array(SQUARE).ravel().tolist()], **entry), "slide 7.json")


def test_coco_of_another_level_is_converted(tmp_path: Path) -> None:
    content = coco([(np.array(SQUARE) * 2).ravel().tolist()], width=80, height=60)
    found = read(tmp_path, content, "slide 7.json")
    assert np.array_equal(found.read().classes, box(10, 5, 20, 15))
    assert found.notes == ("of another level or unit, coordinates multiplied by 0.5: 1",)


def labelme(*shapes: dict[str, Any], **stated: Any) -> dict[str, Any]:
    return {
        "version": "5.2.0",
        "shapes": [{"label": "gland"} | it for it in shapes],
        "imagePath": "slide 7.jpg",
    } | stated


def test_labelme_shapes(tmp_path: Path) -> None:
    png = io.BytesIO()
    Image.fromarray(np.array([[0, 255], [255, 255]], np.uint8)).save(png, format="PNG")
    found = read(
        tmp_path,
        labelme(
            {"shape_type": "rectangle", "points": [[10, 5], [20, 15]]},
            {"shape_type": "circle", "points": [[30, 20], [30, 28]]},
            {"shape_type": "mask", "points": [[0, 0], [1, 1]], "mask": base64.b64encode(png.getvalue()).decode()},
            {"points": [[0, 20], [5, 20], [5, 25], [0, 25]], "group_id": 1},
            {"points": [[8, 20], [9, 20], [9, 25], [8, 25]], "group_id": 1},
            {"shape_type": "point", "points": [[3, 3]]},
            imageWidth=40,
            imageHeight=30,
        ),
        "slide 7.json",
    )
    y, x = np.mgrid[:30, :40] + 0.5
    drawn = found.read()
    assert drawn.instances is not None
    assert np.array_equal(drawn.instances == 1, box(10, 5, 20, 15) == 1)
    assert abs(int((drawn.instances == 2).sum()) - int((np.hypot(x - 30, y - 20) < 8).sum())) <= 4
    assert (drawn.instances == 3)[:2, :2].tolist() == [[False, True], [True, True]]
    assert (drawn.instances == 4).sum() == 30
    assert found.notes == ("points, not used: 1",)


def test_labelme_of_another_image_is_refused(tmp_path: Path) -> None:
    square = {"points": SQUARE}
    with pytest.raises(ImageReadError, match=r"those of \.\./images/other\.png"):
        read(tmp_path, labelme(square, imagePath="../images/other.png"), "slide 7.json")


# ---- bad files

BOMB = b"""<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<Annotations><Annotation Name="&b;"/></Annotations>"""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b'{"type": "FeatureCollection", "features": [{"type": "Fea', "expected JSON, got"),
        (b"[" * 100_000, "expected JSON, got"),
        (b'{"type": "FeatureCollection", "features": [{"name": "f\xfcr"}]}', "UTF-8"),
        (b'{"type": "FeatureCollection", "features": []}', "expected outlines, got none"),
        (b'{"type": "FeatureCollection", "features": 5}', "expected a list of features"),
        (b'{"hello": 1}', "got another kind of file"),
        (b"<Annotations><Annotation", "expected XML, got"),
        (BOMB, "without a document type"),
        (imagescope(), "expected outlines, got none"),
        (imagescope(region(0, (1, 2), (3, 4))), "expected outlines, got none .*fewer than three points"),
        (imagescope(region(0, *OUTER)).replace(b'X="2"', b'X="two"'), "expected a number, got 'two'"),
    ],
)
def test_bad_files_are_refused_with_the_reason(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match=message) as error:
        read(tmp_path, content, "slide 7.xml" if content[:1] == b"<" else "slide 7.geojson")
    assert str(tmp_path / "annotations" / "slide 7.") in str(error.value)


@pytest.mark.parametrize("ring", [[[1, 2], [3, None], [4, 5]], [[1], [2], [3]], "ring", [[1, 2], [3, 1e999], [4, 5]]])
def test_coordinates_that_are_no_pairs_of_numbers_are_refused(ring: Any, tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match="expected"):
        read(tmp_path, json.dumps([feature(ring)]).encode())


def test_a_compressed_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 2**20)
    with pytest.raises(ImageReadError, match="at most 1 MB of text"):
        read(tmp_path, gzip.compress(b" " * 2**24), "slide 7.geojson.gz")


def test_a_scribble_is_refused_before_its_repair_takes_hours(tmp_path: Path) -> None:
    scribble = np.random.default_rng(0).uniform(0, 30, (5000, 2)).tolist()
    with pytest.raises(ImageReadError, match="of 5001 points whose edges cross each other"):
        read(tmp_path, [feature(scribble)])


def test_a_pipe_is_no_annotation(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    os.mkfifo(tmp_path / "annotations" / "slide 7.geojson")
    with pytest.raises(ImageReadError, match="got a FIFO"):
        read_annotation(tmp_path / "annotations" / "slide 7.geojson", IMAGE, CLASSES)
