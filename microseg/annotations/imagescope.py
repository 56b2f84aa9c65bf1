"""XML of Aperio ImageScope: layers (``Annotation``) of regions, in pixels of the full resolution.

The class of a region is the name of its layer, else the layer's description, else the region's own text, else the
layer's color as ``#rrggbb``. A negative region is cut out of the regions of its layer that it touches. The vertices of
a rectangle or an ellipse span it. ``MicronsPerPixel`` other than that of the image states coordinates of another
level, which are converted.
"""

from pathlib import Path
from xml.etree.ElementTree import Element, ElementTree, SubElement

import numpy as np
import numpy.typing as npt
import shapely

from microseg.annotations.classes import UNCLASSIFIED, LabelClasses
from microseg.annotations.files import AnnotatedImage, AnnotationFile
from microseg.annotations.outlines import OutlineBuilder, Outlines, ellipse, single_ring
from microseg.errors import ImageReadError

__all__ = ["ImageScope"]

_RECTANGLE, _ELLIPSE = "1", "2"  # values of Type; 0 is a polygon
_SKIPPED = {"3": "arrows", "4": "rulers", "5": "points"}


class ImageScope:
    """The annotation format ``imagescope``."""

    folder = "annotations"
    suffixes = (".xml",)

    def can_read(self, file: AnnotationFile, _classes: LabelClasses) -> bool:
        """Whether the outermost element is ``Annotations``."""
        return file.xml_root == "Annotations"

    def read(self, file: AnnotationFile, image: AnnotatedImage, _classes: LabelClasses) -> Outlines:
        """Read the regions of all layers."""
        reader = _Reader(image)
        for event, element in file.xml("Annotations", "Annotation", "Attributes", "Region"):
            reader.take(event, element)
        return reader.builder.build().scaled(reader.scale)

    def write(self, path: Path, outlines: Outlines, image: AnnotatedImage) -> None:
        """Write a layer for each object with holes, and one for all others of a class."""
        root = Element("Annotations", {} if image.mpp is None else {"MicronsPerPixel": f"{image.mpp:.6g}"})
        shared: dict[str, Element] = {}
        for name, polygon in zip(outlines.names, outlines.polygons, strict=True):
            parts = shapely.get_parts(polygon)
            rings = [single_ring(polygon)]
            if len(parts) == 1 and parts[0].interiors:
                rings = [shapely.get_coordinates(ring) for ring in (parts[0].exterior, *parts[0].interiors)]
                regions = _add_layer(root, name)
            else:
                if name not in shared:
                    shared[name] = _add_layer(root, name)
                regions = shared[name]
            for number, ring in enumerate(rings):
                values = {"Id": str(len(regions) + 1), "Type": "0", "NegativeROA": "1" if number else "0"}
                vertices = SubElement(SubElement(regions, "Region", values), "Vertices")
                for x, y in ring[:-1].tolist():
                    SubElement(vertices, "Vertex", {"X": repr(x), "Y": repr(y)})
        ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _add_layer(root: Element, name: str) -> Element:
    """Add a layer, and return the element of its regions."""
    layer = SubElement(root, "Annotation", {"Id": str(len(root) + 1), "Name": name})
    return SubElement(layer, "Regions")


class _Reader:
    """Collects regions, layer by layer."""

    def __init__(self, image: AnnotatedImage) -> None:
        self.builder, self.scale = OutlineBuilder(), 1.0
        self._image = image
        self._layer: dict[str, str] = {}
        self._description = ""
        self._in_region = False
        self._positive: list[tuple[str, npt.NDArray[np.float64]]] = []
        self._negative: list[npt.NDArray[np.float64]] = []

    def take(self, event: str, element: Element) -> None:
        """Take the begin or the end of an element."""
        if element.tag == "Annotations" and event == "start":
            stated = element.get("MicronsPerPixel")
            self.scale = self._image.scale_from_mpp(_number(stated) or None if stated else None)
        elif element.tag == "Annotation" and event == "start":
            self._layer, self._description = dict(element.attrib), ""
            self._positive, self._negative = [], []
        elif element.tag == "Attributes" and event == "end" and not self._in_region:
            named = {child.get("Name"): child.get("Value") for child in element}
            self._description = named.get("Description") or ""
        elif element.tag == "Region":
            self._in_region = event == "start"
            if event == "end":
                self._add_region(element)
        elif element.tag == "Annotation":
            self._finish_layer()

    def _add_region(self, region: Element) -> None:
        self._image.check_name(region.get("ImageLocation"))
        kind = region.get("Type", "0")
        if kind in _SKIPPED:
            self.builder.skipped[f"{_SKIPPED[kind]}, not used"] += 1
            return
        if kind not in ("0", _RECTANGLE, _ELLIPSE):
            raise ImageReadError(f"expected regions of the types 0 to 5, got {kind!r}. Remove this region.")
        points = np.array([[_number(v.get("X")), _number(v.get("Y"))] for v in region.iter("Vertex")]).reshape(-1, 2)
        if kind in (_RECTANGLE, _ELLIPSE) and len(points) >= 2:
            (left, top), (right, bottom) = points.min(0), points.max(0)
            if kind == _ELLIPSE:
                points = ellipse(left, top, right, bottom)
            elif len(points) == 2:
                points = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        if region.get("NegativeROA") == "1":
            self._negative.append(points)
        else:
            self._positive.append((region.get("Text") or "", points))

    def _finish_layer(self) -> None:
        color = self._layer.get("LineColor", "")
        code = f"#{int(color) & 0xFFFFFF:06x}" if color.isdigit() else ""
        code = f"#{code[5:7]}{code[3:5]}{code[1:3]}" if code else ""  # stored as blue, green, red
        negative = [shapely.make_valid(shapely.Polygon(points)) for points in self._negative if len(points) > 2]
        tree, used = shapely.STRtree(negative), set[int]()
        for text, points in self._positive:
            stated = (self._layer.get("Name", ""), self._description, text, code)
            name = next((it.strip() for it in stated if it.strip()), UNCLASSIFIED)
            rings = [[points]]
            if negative and len(points) > 2:
                polygon = shapely.make_valid(shapely.Polygon(points), method="structure", keep_collapsed=False)
                cut = tree.query(polygon, predicate="intersects")
                used.update(cut.tolist())
                if len(cut):
                    polygon = shapely.difference(polygon, shapely.union_all(np.array(negative)[cut]))
                    rings = [
                        [shapely.get_coordinates(ring) for ring in (part.exterior, *part.interiors)]
                        for part in shapely.get_parts(polygon)
                        if isinstance(part, shapely.Polygon)
                    ]
            self.builder.add(name, rings)
        if unused := len(negative) - len(used):
            self.builder.skipped["negative regions outside of any region, not used"] += unused


def _number(text: str | None) -> float:
    try:
        return float((text or "").replace(",", "."))
    except ValueError:
        raise ImageReadError(f"expected a number, got {text!r}. Export the file again.") from None
