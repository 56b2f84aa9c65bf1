"""JSON of labelme 3 to 5: polygons, rectangles, circles and masks.

Shapes of the same label and group (``group_id``) are one object. The stated size of the image is the level that
coordinates refer to.
"""

import base64
import io
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import shapely
from PIL import Image

from microseg.annotations.classes import UNCLASSIFIED, LabelClasses
from microseg.annotations.files import AnnotatedImage, AnnotationFile
from microseg.annotations.outlines import OutlineBuilder, Outlines, ellipse, mask_polygons, single_ring
from microseg.errors import ImageReadError

__all__ = ["Labelme"]

_SKIPPED = {"point": "points", "points": "points", "line": "lines", "linestrip": "lines"}
_MAX_PIXELS = 2**28

Polygons = list[list[npt.NDArray[np.float64]]]


class Labelme:
    """The annotation format ``labelme``."""

    folder = "annotations"
    suffixes = (".json", ".json.gz")

    def can_read(self, file: AnnotationFile, _classes: LabelClasses) -> bool:
        """Whether it lists shapes."""
        return isinstance(file.json, dict) and isinstance(file.json.get("shapes"), list)

    def read(self, file: AnnotationFile, image: AnnotatedImage, _classes: LabelClasses) -> Outlines:
        """Read all shapes that have an area."""
        content = file.json
        image.check_name(content.get("imagePath"))
        builder = OutlineBuilder()
        objects: dict[tuple[str, Any], Polygons] = defaultdict(list)
        for number, shape in enumerate(content["shapes"]):
            kind = shape.get("shape_type") or "polygon"
            if kind in _SKIPPED:
                builder.skipped[f"{_SKIPPED[kind]}, not used"] += 1
                continue
            group = shape.get("group_id")
            key = number if group is None else f"group {group}"
            objects[str(shape.get("label") or "").strip() or UNCLASSIFIED, key] += _polygons(kind, shape)
        for (name, _), polygons in objects.items():
            builder.add(name, polygons)
        return builder.build().scaled(image.scale_from(content.get("imageWidth"), content.get("imageHeight")))

    def write(self, path: Path, outlines: Outlines, image: AnnotatedImage) -> None:
        """Write polygons; holes and several parts are joined by lines there and back."""
        drawn = [
            {"label": name, "points": single_ring(polygon)[:-1].tolist(), "group_id": None, "shape_type": "polygon"}
            for name, polygon in zip(outlines.names, outlines.polygons, strict=True)
        ]
        content: dict[str, Any] = {"version": "5.4.1", "flags": {}, "shapes": drawn, "imagePath": image.name}
        content |= {"imageData": None, "imageHeight": image.height, "imageWidth": image.width}
        path.write_bytes(orjson.dumps(content))


def _polygons(kind: str, shape: dict[str, Any]) -> Polygons:
    points = np.asarray(shape.get("points") or [], np.float64).reshape(-1, 2)
    if kind == "polygon":
        return [[points]]
    if kind not in ("rectangle", "circle", "mask") or len(points) < 2:
        raise ImageReadError(
            f"expected polygons, rectangles, circles and masks, got {kind!r} of {len(points)} points. Remove it."
        )
    (left, top), (right, bottom) = points.min(0), points.max(0)
    if kind == "circle":  # its center, and a point on it
        radius = float(np.linalg.norm(points[1] - points[0]))
        x, y = points[0]
        return [[ellipse(x - radius, y - radius, x + radius, y + radius)]]
    if kind == "rectangle":
        return [[shapely.get_coordinates(shapely.box(left, top, right, bottom))]]
    png = io.BytesIO(base64.b64decode(shape.get("mask") or "", validate=True))
    with Image.open(png, formats=("PNG",)) as header:
        if header.width * header.height > _MAX_PIXELS:
            raise ImageReadError(f"expected masks of up to {_MAX_PIXELS} pixels, got {header.width} x {header.height}.")
        return mask_polygons(np.asarray(header.convert("L")) > 0, left, top)
