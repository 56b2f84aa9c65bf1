"""XML of ASAP: outlines in groups, in pixels of the full resolution.

The class of an outline is the name of its group. Splines are taken as the polygons of their points, as ASAP's own
export of masks does.
"""

from pathlib import Path
from xml.etree.ElementTree import Element, ElementTree, SubElement

from microseg.annotations.classes import UNCLASSIFIED, LabelClasses
from microseg.annotations.files import AnnotatedImage, AnnotationFile
from microseg.annotations.outlines import OutlineBuilder, Outlines, single_ring
from microseg.errors import ImageReadError

__all__ = ["Asap"]

_AREAS = ("Polygon", "Spline", "Rectangle")
_SKIPPED = {"Dot": "points", "PointSet": "points", "Measurement": "lines", "Line": "lines"}


class Asap:
    """The annotation format ``asap``."""

    folder = "annotations"
    suffixes = (".xml",)

    def can_read(self, file: AnnotationFile, _classes: LabelClasses) -> bool:
        """Whether the outermost element is ``ASAP_Annotations``."""
        return file.xml_root == "ASAP_Annotations"

    def read(self, file: AnnotationFile, _image: AnnotatedImage, _classes: LabelClasses) -> Outlines:
        """Read the outlines of all groups."""
        builder = OutlineBuilder()
        for event, element in file.xml("Annotation"):
            if event == "start":
                continue
            kind, group = element.get("Type", "Polygon"), (element.get("PartOfGroup") or "").strip()
            if kind in _SKIPPED:
                builder.skipped[f"{_SKIPPED[kind]}, not used"] += 1
                continue
            if kind not in _AREAS:
                raise ImageReadError(f"expected {', '.join(_AREAS)}, got {kind!r}. Remove this annotation.")
            points = sorted(element.iter("Coordinate"), key=lambda point: float(point.get("Order") or 0))
            ring = [[float(point.get("X") or "nan"), float(point.get("Y") or "nan")] for point in points]
            builder.add(UNCLASSIFIED if group in ("", "None") else group, [[ring]])
        return builder.build()

    def write(self, path: Path, outlines: Outlines, _image: AnnotatedImage) -> None:
        """Write polygons; holes and several parts are joined by lines there and back."""
        root = Element("ASAP_Annotations")
        annotations, groups = SubElement(root, "Annotations"), SubElement(root, "AnnotationGroups")
        for number, (name, polygon) in enumerate(zip(outlines.names, outlines.polygons, strict=True)):
            values = {"Name": f"Annotation {number}", "Type": "Polygon", "PartOfGroup": name, "Color": "#F4FA58"}
            coordinates = SubElement(SubElement(annotations, "Annotation", values), "Coordinates")
            for order, (x, y) in enumerate(single_ring(polygon)[:-1].tolist()):
                SubElement(coordinates, "Coordinate", {"Order": str(order), "X": repr(x), "Y": repr(y)})
        for name in dict.fromkeys(outlines.names):
            group = SubElement(groups, "Group", {"Name": name, "PartOfGroup": "None", "Color": "#F4FA58"})
            SubElement(group, "Attributes")
        ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
