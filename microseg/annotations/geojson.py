"""GeoJSON as QuPath 0.2 to 0.6 writes it, and as microseg writes outlines.

A ``FeatureCollection``, a list of features, or one feature; also compressed by gzip. Coordinates are pixels of the
full resolution. A collection of another tool may state otherwise, by the members ``units`` (``pixel`` or ``um``) and
``downsample`` (pixels of the full resolution along one unit) or ``mpp`` (microns along one), which are then converted.
"""

import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import shapely

from microseg.annotations.classes import UNCLASSIFIED, LabelClasses
from microseg.annotations.files import AnnotatedImage, AnnotationFile
from microseg.annotations.outlines import OutlineBuilder, Outlines
from microseg.errors import ImageReadError

__all__ = ["GeoJson"]

_AREAS = ("Polygon", "MultiPolygon")
_SKIPPED = {
    "Point": "points",
    "MultiPoint": "points",
    "LineString": "lines",
    "MultiLineString": "lines",
    "GeometryCollection": "collections of geometries",
}
_SKIPPED_OBJECTS = {"root": "root objects", "tmaCore": "TMA cores", "tma_core": "TMA cores", "tile": "tiles"}
_MICRONS = ("um", "µm", "μm", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres")
_PIXELS = ("px", "pixel", "pixels")


class GeoJson:
    """The annotation format ``geojson``."""

    folder = "annotations"
    suffixes = (".geojson", ".json", ".geojson.gz", ".json.gz")

    def can_read(self, file: AnnotationFile, _classes: LabelClasses) -> bool:
        """Whether it has features."""
        content = file.json
        if isinstance(content, dict):
            return content.get("type") in ("FeatureCollection", "Feature", *_AREAS)
        return isinstance(content, list) and (
            not content or (isinstance(content[0], dict) and content[0].get("type") == "Feature")
        )

    def read(self, file: AnnotationFile, image: AnnotatedImage, classes: LabelClasses) -> Outlines:
        """Read annotations, detections and cells."""
        content = file.json
        builder, images = OutlineBuilder(), Counter[str | None]()
        for feature in _features(content):
            _add(builder, feature, classes)
            images[_image_name(feature)] += 1
        image.check_name(*images)
        for name, count in images.items():
            if name and not image.has_name(name):
                builder.skipped[f"found by microseg in another image, {name}, and copied from it"] += count
        scale = 1.0
        if isinstance(content, dict):
            stated = {**content, **(content.get("metadata") or {})} if _is_dict(content.get("metadata")) else content
            image.check_name(stated.get("image"))
            scale = _scale(stated, image)
        return builder.build().scaled(scale)

    def write(self, path: Path, outlines: Outlines, _image: AnnotatedImage) -> None:
        """Write annotations."""
        features = [
            {
                "type": "Feature",
                "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{path.name} {number}")),
                "geometry": orjson.Fragment(geometry),
                "properties": {"objectType": "annotation", "classification": {"name": name}},
            }
            for number, (name, geometry) in enumerate(
                zip(outlines.names, shapely.to_geojson(outlines.polygons).tolist(), strict=True)
            )
        ]
        path.write_bytes(orjson.dumps({"type": "FeatureCollection", "features": features}))


def _features(content: Any) -> Iterator[dict[str, Any]]:
    if isinstance(content, dict) and content.get("type") == "FeatureCollection":
        content = content.get("features")
    elif isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        raise ImageReadError(f"expected a list of features, got {type(content).__name__}. Export the file again.")
    for feature in content:
        if not isinstance(feature, dict):
            raise ImageReadError(f"expected features, got {str(feature)[:80]}. Export the file again.")
        yield feature if feature.get("type") == "Feature" else {"geometry": feature, "properties": {}}


def _add(builder: OutlineBuilder, feature: dict[str, Any], classes: LabelClasses) -> None:
    properties = feature.get("properties") or {}
    kind = properties.get("objectType") or properties.get("object_type") or ""
    if what := _SKIPPED_OBJECTS.get(str(kind)):
        builder.skipped[f"{what}, not used"] += 1
        return
    geometry = feature.get("geometry") or {}
    if nucleus := feature.get("nucleusGeometry"):
        if classes.cells is None:
            raise ImageReadError(
                "expected to know which outline of a cell is the object, got cells with two outlines each. State "
                "`cells: boundary` or `cells: nucleus` in lab.yaml."
            )
        geometry = nucleus if classes.cells == "nucleus" else geometry
    shape, coordinates = geometry.get("type"), geometry.get("coordinates")
    plane = geometry.get("plane") or {}
    if plane.get("z", 0) > 0 or plane.get("t", 0) > 0:
        builder.skipped["objects on other planes or at other times, not used"] += 1
    elif shape in _AREAS and coordinates is not None:
        name = _class_name(properties.get("classification"))
        builder.add(name, [coordinates] if shape == "Polygon" else coordinates)
    elif shape in _SKIPPED or not shape:
        builder.skipped[f"{_SKIPPED.get(str(shape), 'objects without geometry')}, not used"] += 1
    else:
        raise ImageReadError(f"expected GeoJSON geometries, got {shape!r}. Export the file again.")


def _image_name(feature: dict[str, Any]) -> str | None:
    """Name of the image that microseg found an object in, which QuPath keeps with the object."""
    metadata = (feature.get("properties") or {}).get("metadata")
    if isinstance(metadata, dict) and {"model", "image"} <= metadata.keys():
        return str(metadata["image"])
    return None


def _class_name(classification: Any) -> str:
    """Name of a class: an object with ``name`` or ``names``, or a name."""
    if isinstance(classification, dict):
        classification = classification.get("name") or classification.get("names")
    if isinstance(classification, Sequence) and not isinstance(classification, str):
        classification = ": ".join(map(str, classification))  # a derived class, as QuPath shows it
    return str(classification).strip() if classification else UNCLASSIFIED


def _scale(stated: dict[str, Any], image: AnnotatedImage) -> float:
    """Factor from the coordinates to pixels of the image's finest level."""
    unit = str(stated.get("units") or stated.get("unit") or "pixel").strip().lower()
    if unit in _MICRONS:
        if image.mpp is None:
            raise ImageReadError(
                f"expected the pixel size of the image, to convert coordinates in {unit}, got none. State mpp in "
                "lab.yaml or images.csv, or export the annotations in pixels."
            )
        return 1 / image.mpp
    if unit not in _PIXELS:
        raise ImageReadError(f"expected coordinates in pixels or um, got {unit!r}. Export the annotations in pixels.")
    downsample, mpp = stated.get("downsample"), stated.get("mpp")
    for name, value in (("downsample", downsample), ("mpp", mpp)):
        if value is not None and not (isinstance(value, int | float) and 1e-3 < value < 1e4):
            raise ImageReadError(f"expected {name} as a positive number, got {value!r}. Correct the file.")
    return float(downsample) if downsample is not None else image.scale_from_mpp(mpp)


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)
