"""Outlines of objects as GeoJSON, which QuPath opens as annotations."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
import shapely

from microseg.outputs.overlay import class_color
from microseg.outputs.record import ImageInfo
from microseg.outputs.writers import ObjectBatch, OutputWriter, Thumbnail

__all__ = ["OutlinesWriter", "features"]


class OutlinesWriter(OutputWriter):
    """Writes the outlines and measurements of all objects as a GeoJSON ``FeatureCollection``; see `features`."""

    suffix = ".geojson"
    needs_objects = True

    def __init__(self, path: Path, image: ImageInfo, thumbnail: Thumbnail) -> None:
        super().__init__(path, image, thumbnail)
        self._file = path.open("w", encoding="utf-8")
        self._file.write('{"type": "FeatureCollection", "features": [')
        self._separator = ""

    def add_objects(self, objects: ObjectBatch) -> None:
        """Append features."""
        for feature in features(objects, self.image):
            self._file.write(self._separator + feature)
            self._separator = ",\n"

    def finish(self) -> None:
        """Close the collection."""
        self._file.write("]}")
        self._file.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def features(objects: ObjectBatch, image: ImageInfo) -> Iterator[str]:
    """GeoJSON features of objects: annotations of QuPath with class, color and measurements.

    Args:
        objects: Some objects of the image.
        image: The image. Objects of the same image file and model have the same ids each time.

    Yields:
        The JSON text of each object, in pixels of the image from the top left corner. Measurements that are unknown are
        left out.

    Reference:
        RFC 7946, and QuPath's ``QuPathTypeAdapters``: ids are UUIDs, measurements are one object of numbers.
    """
    provenance, polygons = image.provenance, objects.polygons
    origin = f"{image.source_sha256 or image.source} {provenance.model} {provenance.weights_sha256}"
    namespace = uuid.uuid5(uuid.NAMESPACE_URL, origin)
    if image.step != (1.0, 1.0):
        polygons = shapely.transform(polygons, lambda coordinates: (coordinates * image.step).round(2))
    columns = [column for column in objects.table.columns if column not in ("image", "label", "class", "model")]
    values = objects.table[columns].to_numpy(np.float64)
    rows = zip(objects.table["label"], objects.indices.tolist(), shapely.to_geojson(polygons), values, strict=True)
    for number, index, geometry, row in rows:
        properties = {
            "objectType": "annotation",
            "name": f"{image.classes[index]} {number}",
            "classification": {"name": image.classes[index], "color": class_color(index)},
            "metadata": {"model": provenance.model},
            "measurements": {
                name: value for name, value in zip(columns, row.tolist(), strict=True) if np.isfinite(value)
            },
        }
        yield (
            f'{{"type": "Feature", "id": "{uuid.uuid5(namespace, str(number))}", "geometry": {geometry}, '
            f'"properties": {orjson.dumps(properties).decode()}}}'
        )
