"""Output writers: one class per output format, found by name under the entry-point group ``microseg.output_writers``.

To add a format, subclass `OutputWriter` in one file, and register the class in the ``pyproject.toml`` of its package::

    [project.entry-points."microseg.output_writers"]
    cell_counts = "my_package.cell_counts:CellCountWriter"

After that, ``cell_counts`` is a valid name in ``inference.outputs``. The built-in writers are registered the same way.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from microseg.errors import PluginError, SettingsError
from microseg.outputs.record import ImageInfo
from microseg.plugins import load_plugin, plugin_names
from microseg.threads import Threads

__all__ = ["MaskStrip", "ObjectBatch", "OutputWriter", "Thumbnail", "load_writers", "output_suffixes"]

_GROUP = "microseg.output_writers"

Thumbnail = Callable[[int], npt.NDArray[np.uint8]]
"""Takes the largest allowed side in pixels, returns the whole image as RGB, (h, w, 3), not enlarged."""


@dataclass(frozen=True)
class MaskStrip:
    """Some rows of a mask. A slide has many strips, from top to bottom; a smaller image is one strip.

    Attributes:
        top: Index of the first row.
        mask: Class indices.
        confidence: Probability of each pixel's class: floats in 0..1, or uint8 in 255ths. None if unknown.
        probabilities: Probabilities of all classes; None for slides.
        interior: How far each pixel lies inside its object, in 255ths, where touching objects are separated by it.
        instances: Number of the object at each pixel, where the objects of the whole image are known already; then the
            strip is the whole image.
        image: Pixels of the image, where stains are measured.

    Shape:
        mask, confidence, interior and instances (n, W), probabilities (K, n, W), image (n, W, 3)
    """

    top: int
    mask: npt.NDArray[np.uint8]
    confidence: npt.NDArray[np.uint8] | npt.NDArray[np.float32] | None
    probabilities: npt.NDArray[np.float32] | None = None
    interior: npt.NDArray[np.uint8] | None = None
    instances: npt.NDArray[np.int32] | None = None
    image: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class ObjectBatch:
    """Some objects of a mask, N of them, in the order of their labels.

    Each object has one outline. An object of a slide whose outline would be too large for the memory has several, of
    parts of it that share edges; the outlines after the first may be in later batches.

    Attributes:
        columns: Measurements by name, one value per object; the names begin with ``OBJECT_COLUMNS``.
        polygons: Outlines in pixels of the mask, as shapely polygons.
        indices: Class index of the object of each outline.
        labels: Label of the object of each outline.
        parts: Number of each outline among those of its object, from 0.

    Shape:
        polygons, indices, labels and parts (M,), M ≥ N
    """

    columns: Mapping[str, npt.NDArray[Any]]
    polygons: npt.NDArray[np.object_]
    indices: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    parts: npt.NDArray[np.int64]

    @cached_property
    def table(self) -> pd.DataFrame:
        """The measurements as a table, one row per object."""
        return pd.DataFrame(dict(self.columns))

    @classmethod
    def join(cls, batches: "Sequence[ObjectBatch]") -> Self:
        """All objects of several batches."""
        columns = {name: np.concatenate([batch.columns[name] for batch in batches]) for name in batches[0].columns}
        arrays = zip(*((it.polygons, it.indices, it.labels, it.parts) for it in batches), strict=True)
        return cls(columns, *(np.concatenate(parts) for parts in arrays))


class OutputWriter(ABC):
    """Writes one output file of one image.

    The calls are: the constructor, `add_strip` for all rows from top to bottom, `add_objects` for all objects (with
    ``needs_objects`` only), `add_labels` for all rows (with ``needs_labels`` only), `finish`, and in any case `close`.
    Calls of one writer never overlap, but they may come from different threads, at the same time as those of others.

    Args:
        path: File to write, in a temporary folder; it takes its final place when all outputs of the image are complete.
            Temporary files may be created beside it.
        image: The image, its pixel size and classes.
        thumbnail: Reads the whole image at a reduced size, see `Thumbnail`.

    Attributes:
        suffix: End of the file's name, such as ``.labels.tif``; no two writers may share it.
        needs_objects: Whether `add_objects` is to be called. Finding the outlines of objects takes time.
        needs_labels: Whether `add_labels` is to be called.
        needs_probabilities: Whether strips must have the probabilities of all classes. Such a writer cannot be used for
            slides, whose probabilities do not fit into memory.
        threads: Threads for what takes long in `add_strip`, `add_labels` and `finish`; set after the constructor.
    """

    suffix: ClassVar[str]
    needs_objects: ClassVar[bool] = False
    needs_labels: bool = False
    needs_probabilities: ClassVar[bool] = False
    threads: Threads = Threads()

    def __init__(self, path: Path, image: ImageInfo, thumbnail: Thumbnail) -> None:
        self.path, self.image, self.thumbnail = path, image, thumbnail

    def add_strip(self, strip: MaskStrip) -> None:  # noqa: B027 (not all writers need the mask)
        """Take the next rows of the mask. Its arrays must not be changed."""

    def add_objects(self, objects: ObjectBatch) -> None:  # noqa: B027 (not all writers need objects)
        """Take the next objects, after all rows."""

    def add_labels(self, labels: npt.NDArray[np.int32], count: int) -> None:  # noqa: B027 (few writers need them)
        """Take the next rows of the numbers of the objects at each pixel, after all objects.

        Args:
            labels: Number of the object, 0 where there is none, (n, W).
            count: Number of objects in the whole image.
        """

    @abstractmethod
    def finish(self) -> None:
        """Complete the file at ``path``."""

    def close(self) -> None:  # noqa: B027 (not all writers have temporary files)
        """Release temporary files; also called after an error."""


def load_writers(outputs: Collection[str]) -> dict[str, type[OutputWriter]]:
    """Import the writers of the given outputs.

    Args:
        outputs: Names of output writers.

    Returns:
        The classes by name, in the given order.

    Raises:
        SettingsError: A name is unknown, or ``outputs`` is a single string.
        PluginError: The package of a writer cannot be imported.
    """
    known = plugin_names(_GROUP)
    unknown = [outputs] if isinstance(outputs, str) else sorted(set(outputs) - set(known))
    if unknown:
        raise SettingsError(
            f"Expected a list of output writers out of {', '.join(known)}, got {unknown}: correct inference.outputs, "
            f"or install the package that provides the writer (entry-point group {_GROUP})."
        )
    return {output: load_plugin(_GROUP, output) for output in dict.fromkeys(outputs)}


@cache
def output_suffixes() -> tuple[str, ...]:
    """Ends of the names of all files that installed writers can write."""
    suffixes = []
    for name in plugin_names(_GROUP):
        with suppress(PluginError):  # reported when it is used
            suffixes.append(load_plugin(_GROUP, name).suffix)
    return tuple(suffixes)
