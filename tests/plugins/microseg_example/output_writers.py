"""An output writer: the number of pixels and objects of each class, as a JSON file."""

import json
from collections import Counter
from pathlib import Path

import numpy as np

from microseg.outputs.record import ImageInfo
from microseg.outputs.writers import MaskStrip, ObjectBatch, OutputWriter, Thumbnail


class ClassCounts(OutputWriter):
    """Writes ``<image>.counts.json``."""

    suffix = ".counts.json"
    needs_objects = True

    def __init__(self, path: Path, image: ImageInfo, thumbnail: Thumbnail) -> None:
        super().__init__(path, image, thumbnail)
        self._pixels, self._objects = Counter[str](), Counter[str]()

    def add_strip(self, strip: MaskStrip) -> None:
        """Count pixels."""
        for index, count in enumerate(np.bincount(strip.mask.ravel())[: len(self.image.classes)].tolist()):
            self._pixels[self.image.classes[index]] += count

    def add_objects(self, objects: ObjectBatch) -> None:
        """Count objects."""
        self._objects.update(objects.table["class"])

    def finish(self) -> None:
        """Write the file."""
        self.path.write_text(json.dumps({"pixels": self._pixels, "objects": self._objects}))
