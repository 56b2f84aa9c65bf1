"""Outlines of objects as GeoJSON, which QuPath opens as annotations or detections."""

import uuid
from collections.abc import Iterator, Mapping
from hashlib import sha1
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import orjson
import shapely

from microseg.escaping import printable
from microseg.outputs.colors import class_color
from microseg.outputs.pixel_amounts import split_column
from microseg.outputs.record import ImageInfo
from microseg.outputs.writers import ObjectBatch, OutputWriter, Thumbnail

__all__ = ["DetectionsWriter", "OutlinesWriter", "features", "qupath_name"]


_MICRON = "\N{MICRO SIGN}m"
_NAMES = {
    "mean_probability": "Class probability",
    "at_border": "At border of image",
    "dab_positive": "DAB positive",
}


class OutlinesWriter(OutputWriter):
    """Writes the outlines and measurements of all objects as a GeoJSON ``FeatureCollection``; see `features`."""

    suffix = ".geojson"
    needs_objects = True
    object_type: ClassVar[str] = "annotation"

    def __init__(self, path: Path, image: ImageInfo, thumbnail: Thumbnail) -> None:
        super().__init__(path, image, thumbnail)
        self._file = path.open("wb")
        self._file.write(b'{"type": "FeatureCollection", "features": [')
        self._separator = b""

    def add_objects(self, objects: ObjectBatch) -> None:
        """Append features."""
        if found := list(features(objects, self.image, self.object_type)):
            self._file.write(self._separator + b",\n".join(found))
            self._separator = b",\n"

    def finish(self) -> None:
        """Close the collection."""
        self._file.write(b"]}")
        self._file.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class DetectionsWriter(OutlinesWriter):
    """Writes the same file as detections, which QuPath shows faster than annotations; named ``detections``."""

    suffix = ".detections.geojson"
    object_type = "detection"


def features(objects: ObjectBatch, image: ImageInfo, object_type: str = "annotation") -> Iterator[bytes]:
    """GeoJSON features of objects: annotations or detections of QuPath with class, color and measurements.

    Args:
        objects: Some objects of the image.
        image: The image. Objects of the same image file, by the same model with the same settings of inference, have
            the same ids each time; after any other segmentation they have others.
        object_type: ``annotation`` or ``detection``.

    Yields:
        The JSON of each object, in pixels of the image from the top left corner. Measurements have the names of
        `qupath_name`; those that are unknown are left out.

    Reference:
        RFC 7946, and QuPath's ``QuPathTypeAdapters``: ids are UUIDs, measurements are one object of numbers.
    """
    provenance = image.provenance
    settings = [provenance.inference.get(name) for name in ("tile", "halo", "half", "model_mpp", "split")]
    name = printable(Path(image.source).name)
    origin = f"{image.source_sha256 or image.source} {provenance.model} {provenance.weights_sha256}"
    namespace = uuid.uuid5(uuid.NAMESPACE_URL, f"{origin} {settings} {image.mpp} {image.instances}")
    measured = dict(zip(objects.columns["label"].tolist(), _measurements(objects.columns), strict=True))
    rings, of_polygons = shapely.get_rings(objects.polygons, return_index=True)
    points, of_rings = shapely.get_coordinates(rings, return_index=True)
    whole = image.step == (1.0, 1.0)  # corners of pixels
    points = points.astype(np.int64) if whole else (points * image.step).round(2)
    ends = np.bincount(of_rings, minlength=len(rings)).cumsum().tolist()
    lines = [points[start:end] for start, end in zip([0, *ends], ends)]  # noqa: B905
    lasts = np.bincount(of_polygons, minlength=len(objects.polygons)).cumsum().tolist()
    shapes = [lines[start:end] for start, end in zip([0, *lasts], lasts)]  # noqa: B905
    rows = zip(*(it.tolist() for it in (objects.labels, objects.parts, objects.indices)), shapes, strict=True)
    classified = {index: {"name": image.classes[index], "color": class_color(index)} for index in set(objects.indices)}
    for number, part, index, shape in rows:
        feature = {
            "type": "Feature",
            "id": _uuid5(namespace, f"{number}" + (f"/{part}" if part else "")),
            "geometry": {"type": "Polygon", "coordinates": shape},
            "properties": {
                "objectType": object_type,
                "name": f"{image.classes[index]} {number}" + (f", part {part + 1}" if part else ""),
                "classification": classified[index],
                "metadata": {"model": provenance.model, "image": name},
                "measurements": {} if part else measured[number],
            },
        }
        yield orjson.dumps(feature, option=orjson.OPT_SERIALIZE_NUMPY)


def _measurements(columns: Mapping[str, npt.NDArray[Any]]) -> Iterator[dict[str, float]]:
    """Measurements of each object by the names of QuPath, without those that are unknown."""
    known = {name: it for name, it in columns.items() if it.dtype.kind in "if" and name != "label"}
    values = np.column_stack([it.astype(np.float64) for it in known.values()])  # (N, columns)
    finite = np.isfinite(values)
    names = [qupath_name(name) for name in known]
    if (finite.all(axis=0) == finite.any(axis=0)).all():  # a column is known of all objects, or of none
        kept = np.flatnonzero(finite.all(axis=0))
        names = [names[column] for column in kept]
        return (dict(zip(names, row, strict=True)) for row in values[:, kept].tolist())
    rows = zip(values.tolist(), finite.tolist(), strict=True)
    return ({name: value for name, value, known in zip(names, *row, strict=True) if known} for row in rows)


def _uuid5(namespace: uuid.UUID, name: str) -> str:
    """`uuid.uuid5` as text, in a fifth of its time."""
    digits = sha1(namespace.bytes + name.encode(), usedforsecurity=False).hexdigest()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-5{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:32]}"


def qupath_name(column: str) -> str:
    """Name that QuPath has for a measurement; a name like those where it has none.

    Args:
        column: A column of the table of objects, such as ``max_diameter_um`` or ``ring_dab_od_mean``.
    """
    if (amount := split_column(column)) is not None:
        ring, name, quantity, value = amount
        shown = name if quantity == "intensity" else f"{'DAB' if name == 'dab' else name.capitalize()} OD"
        return f"{'Ring: ' if ring else ''}{shown} {'std dev' if value == 'std' else value}"
    name = column
    for end, unit in (("_px", "px"), ("_um2", f"{_MICRON}^2"), ("_um", _MICRON)):
        if name.endswith(end):
            base = name.removesuffix(end)
            unit = "px^2" if (base, unit) == ("area", "px") else unit
            words = {"perimeter": "Length", "centroid_x": "Centroid X", "centroid_y": "Centroid Y"}.get(base)
            return f"{words or base.replace('_', ' ').capitalize()} {unit}"
    return _NAMES.get(name, name.capitalize())
