"""An annotation format: rectangles in a CSV file, one ``class,left,top,right,bottom`` in pixels per line."""

import csv

from microseg.annotations.classes import LabelClasses
from microseg.annotations.files import AnnotatedImage, AnnotationFile
from microseg.annotations.outlines import OutlineBuilder, Outlines


class Rectangles:
    """Reads ``annotations/<image>.csv``."""

    folder = "annotations"
    suffixes = (".csv",)

    def can_read(self, file: AnnotationFile, _classes: LabelClasses) -> bool:
        """Accept CSV files."""
        return file.path.suffix.lower() == ".csv"

    def read(self, file: AnnotationFile, _image: AnnotatedImage, _classes: LabelClasses) -> Outlines:
        """Outline the rectangles of a file."""
        outlines = OutlineBuilder()
        with file.path.open(newline="") as lines:
            for name, *box in csv.reader(lines):
                left, top, right, bottom = map(int, box)
                outlines.add(name, [[[(left, top), (right, top), (right, bottom), (left, bottom)]]])
        return outlines.build()
