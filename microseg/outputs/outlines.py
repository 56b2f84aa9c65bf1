"""Outlines of objects as GeoJSON, which QuPath opens as annotations or detections."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import orjson
import shapely

from microseg.outputs.overlay import class_color
from microseg.outputs.record import ImageInfo
from microseg.outputs.writers import ObjectBatch, OutputWriter, Thumbnail

__all__ = ["DetectionsWriter", "OutlinesWriter", "features", "qupath_name"]


_MICRON = "\N{MICRO SIGN}m"


class OutlinesWriter(OutputWriter):
    """Writes the outlines and measurements of all objects as a GeoJSON ``FeatureCollection``; see `features`."""

    suffix = ".geojson"
    needs_objects = True
    object_type: ClassVar[str] = "annotation"

    def __init__(self, path: Path, image: ImageInfo, thumbnail: Thumbnail) -> None:
        super().__init__(path, image, thumbnail)
        self._file = path.open("w", encoding="utf-8")
        self._file.write('{"type": "FeatureCollection", "features": [')
        self._separator = ""

    def add_objects(self, objects: ObjectBatch) -> None:
        """Append features."""
        for feature in features(objects, self.image, self.object_type):
            self._file.write(self._separator + feature)
            self._separator = ",\n"

    def finish(self) -> None:
        """Close the collection."""
        self._file.write("]}")
        self._file.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class DetectionsWriter(OutlinesWriter):
    """Writes the same file as detections, which QuPath shows faster than annotations; named ``detections``."""

    suffix = ".detections.geojson"
    object_type = "detection"


def features(objects: ObjectBatch, image: ImageInfo, object_type: str = "annotation") -> Iterator[str]:
    """GeoJSON features of objects: annotations or detections of QuPath with class, color and measurements.

    Args:
        objects: Some objects of the image.
        image: The image. Objects of the same image file by the same model have the same ids each time.
        object_type: ``annotation`` or ``detection``.

    Yields:
        The JSON text of each object, in pixels of the image from the top left corner. Measurements have the names of
        `qupath_name`; those that are unknown are left out.

    Reference:
        RFC 7946, and QuPath's ``QuPathTypeAdapters``: ids are UUIDs, measurements are one object of numbers.
    """
    provenance = image.provenance
    origin = f"{image.source_sha256 or image.source} {provenance.model} {provenance.weights_sha256}"
    polygons, namespace = objects.polygons, uuid.uuid5(uuid.NAMESPACE_URL, origin)
    if image.step != (1.0, 1.0):
        polygons = shapely.transform(polygons, lambda coordinates: (coordinates * image.step).round(2))
    numbers = objects.table.drop(columns="label").select_dtypes("number")
    names, values = [qupath_name(column) for column in numbers.columns], numbers.to_numpy(np.float64)
    measured = dict(zip(objects.table["label"].tolist(), values.tolist(), strict=True))
    rows = zip(objects.labels, objects.parts, objects.indices, shapely.to_geojson(polygons), strict=True)
    for number, part, index, geometry in rows:
        row = [] if part else measured[number]
        properties = {
            "objectType": object_type,
            "name": f"{image.classes[index]} {number}" + (f", part {part + 1}" if part else ""),
            "classification": {"name": image.classes[index], "color": class_color(index)},
            "metadata": {"model": provenance.model},
            "measurements": {name: value for name, value in zip(names, row) if np.isfinite(value)},  # noqa: B905
        }
        identity = uuid.uuid5(namespace, f"{number}" + (f"/{part}" if part else ""))
        yield (
            f'{{"type": "Feature", "id": "{identity}", "geometry": {geometry}, '
            f'"properties": {orjson.dumps(properties).decode()}}}'
        )


def qupath_name(column: str) -> str:
    """Name that QuPath has for a measurement; a name like those where it has none.

    Args:
        column: A column of the table of objects, such as ``max_diameter_um`` or ``ring_dab_od_mean``.
    """
    place = "Ring: " if column.startswith("ring_") else ""
    name = column.removeprefix("ring_")
    if "_od_" in name:
        stain, _, value = name.partition("_od_")
        return f"{place}{'DAB' if stain == 'dab' else stain.capitalize()} OD {'std dev' if value == 'std' else value}"
    for end, unit in (("_px", "px"), ("_um2", f"{_MICRON}^2"), ("_um", _MICRON)):
        if name.endswith(end):
            base = name.removesuffix(end)
            unit = "px^2" if (base, unit) == ("area", "px") else unit
            words = {"perimeter": "Length", "centroid_x": "Centroid X", "centroid_y": "Centroid Y"}.get(base)
            return f"{words or base.replace('_', ' ').capitalize()} {unit}"
    return {"mean_probability": "Class probability", "at_border": "At border of image"}.get(name, name.capitalize())
