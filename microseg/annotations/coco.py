"""COCO JSON: polygons and run-length encodings of the objects of one or many images.

The entry of an image is the one with its file name; a file with only one image may leave the name out. Width and
height state the level that coordinates refer to. Crowds (``iscrowd: 1``) mark areas of objects that are not told
apart: they are ignored, not labelled.

Reference:
    Lin et al., "Microsoft COCO: common objects in context", ECCV 2014; the encodings are those of pycocotools.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import shapely

from microseg.annotations.classes import UNCLASSIFIED, LabelClasses
from microseg.annotations.files import AnnotatedImage, AnnotationFile
from microseg.annotations.outlines import OutlineBuilder, Outlines, mask_polygons, single_ring
from microseg.errors import ImageReadError

__all__ = ["Coco", "decode_runs", "image_names"]

_MAX_PIXELS = 2**31


class Coco:
    """The annotation format ``coco``."""

    folder = "annotations"
    suffixes = (".json", ".json.gz")

    def can_read(self, file: AnnotationFile, _classes: LabelClasses) -> bool:
        """Whether it lists annotations and images."""
        content = file.json
        return isinstance(content, dict) and isinstance(content.get("annotations"), list) and "images" in content

    def read(self, file: AnnotationFile, image: AnnotatedImage, classes: LabelClasses) -> Outlines:
        """Read the objects of one image."""
        content = file.json
        entry = _entry(content["images"], image)
        if "coco" not in file.index:
            by_image = defaultdict[Any, list[dict[str, Any]]](list)
            for annotation in content["annotations"]:
                by_image[annotation.get("image_id")].append(annotation)
            file.index["coco"] = by_image
        names = {it["id"]: str(it["name"]) for it in content.get("categories") or ()}
        crowd = classes.ignored[0] if classes.ignored else "Ignore*"
        builder = OutlineBuilder()
        for annotation in file.index["coco"].get(entry["id"], ()):
            category = annotation.get("category_id")
            if category is not None and category not in names:
                raise ImageReadError(
                    f"expected a category of {sorted(names)}, got {category!r}. Complete the list of categories."
                )
            name = UNCLASSIFIED if category is None else names[category]
            outline = annotation.get("segmentation")
            if not outline:
                builder.skipped["boxes without outline, not used"] += 1
            elif isinstance(outline, dict):
                builder.add(crowd if annotation.get("iscrowd") else name, _encoded(outline, entry))
            else:
                builder.add(crowd if annotation.get("iscrowd") else name, [[_pairs(ring)] for ring in outline])
        return builder.build().scaled(image.scale_from(entry.get("width"), entry.get("height")))

    def write(self, path: Path, outlines: Outlines, image: AnnotatedImage) -> None:
        """Write polygons; holes are joined to the outer ring by lines there and back."""
        classes = list(dict.fromkeys(outlines.names))
        annotations = []
        for number, (name, polygon) in enumerate(zip(outlines.names, outlines.polygons, strict=True), start=1):
            left, top, right, bottom = shapely.bounds(polygon).tolist()
            rings = [single_ring(part).round(4).ravel().tolist() for part in shapely.get_parts(polygon)]
            annotations.append(
                {
                    "id": number,
                    "image_id": 1,
                    "category_id": classes.index(name) + 1,
                    "segmentation": rings,
                    "area": float(shapely.area(polygon)),
                    "bbox": [left, top, right - left, bottom - top],
                    "iscrowd": 0,
                }
            )
        entry = {"id": 1, "file_name": image.name, "width": image.width, "height": image.height}
        categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
        path.write_bytes(orjson.dumps({"images": [entry], "categories": categories, "annotations": annotations}))


def _entry(entries: Any, image: AnnotatedImage) -> dict[str, Any]:
    """The entry of an image."""
    if not isinstance(entries, list) or not all(isinstance(it, dict) and "id" in it for it in entries) or not entries:
        raise ImageReadError("expected a list of images, each with an id, got none. Export the file again.")
    fitting: list[dict[str, Any]] = []
    fault: ImageReadError | None = None
    for entry in entries:
        try:
            image.check_name(entry.get("file_name"))
            fitting.append(entry)
        except ImageReadError as error:
            fault = error
    if len(fitting) == 1:
        return fitting[0]
    if len(entries) == 1 and fault is not None:
        raise fault
    raise ImageReadError(
        f"expected one entry of {image.name} among the {len(entries)} images, got {len(fitting)}. Correct the file "
        "names in it."
    )


def _pairs(ring: Any) -> npt.NDArray[np.float64]:
    """Points of a list x, y, x, y …"""
    try:
        values = np.asarray(ring, np.float64)
    except (TypeError, ValueError):
        values = np.zeros(1)
    if values.ndim != 1 or len(values) % 2:
        raise ImageReadError(f"expected polygons as lists of x, y, x, y …, got {str(ring)[:80]}. Export it again.")
    return values.reshape(-1, 2)


def _encoded(encoding: dict[str, Any], entry: dict[str, Any]) -> list[list[npt.NDArray[np.float64]]]:
    """Outlines of a run-length encoding, along the edges of its pixels."""
    counts, size = encoding.get("counts"), encoding.get("size")
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(it, int) and it > 0 for it in size)):
        raise ImageReadError(f"expected the size of an encoding as height and width, got {size!r}.")
    stated = [entry.get("height"), entry.get("width")]
    if size[0] * size[1] > _MAX_PIXELS or (None not in stated and stated != size):
        raise ImageReadError(f"expected encodings of the image's size {stated}, got {size}. Export the file again.")
    runs: Any = decode_runs(counts) if isinstance(counts, str) else counts
    height, width = size
    whole = isinstance(runs, list) and all(isinstance(run, int) and run >= 0 for run in runs)
    if not whole or sum(runs) != height * width:
        raise ImageReadError("expected runs that fill the image exactly, got others. Export the file again.")
    ends = np.cumsum(runs, dtype=np.int64)  # column by column; every second run is of the object
    starts, stops = ends[:-1:2], ends[1::2]
    filled = stops > starts[: len(stops)]
    starts, stops = starts[: len(stops)][filled], stops[filled]
    if not len(starts):
        return []
    first, last = int(starts[0] // height), int((stops[-1] - 1) // height)
    flat = np.zeros((last - first + 1) * height, np.uint8)
    for start, stop in zip((starts - first * height).tolist(), (stops - first * height).tolist(), strict=True):
        flat[start:stop] = 1
    return mask_polygons(flat.reshape(-1, height).T, first, 0)


def decode_runs(text: str) -> list[int]:
    """Decode the compressed runs of pycocotools: numbers of 5 bits a character, after the third as differences.

    Raises:
        ImageReadError: The text ends within a number, or has other characters.
    """
    runs: list[int] = []
    value = shift = 0
    for code in (ord(character) - 48 for character in text):
        if not 0 <= code < 64 or shift > 60:
            raise ImageReadError("expected runs in the encoding of pycocotools, got other characters.")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ImageReadError("expected complete runs, got a text that is cut off. Export or copy the file again.")
    return runs


def image_names(content: Any) -> Sequence[str]:
    """File names of all images in a COCO file."""
    images = content.get("images") if isinstance(content, dict) else None
    return [str(it["file_name"]) for it in images or () if isinstance(it, dict) and it.get("file_name")]
