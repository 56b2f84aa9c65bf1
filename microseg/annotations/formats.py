"""Annotation formats: the extension point for files of labels, and reading a file with the format that it has.

A package adds a format by one class, which is named under the entry-point group ``microseg.annotations``::

    class Rectangles:
        folder = "annotations"
        suffixes = (".csv",)

        def read(self, path: Path, size: tuple[int, int], classes: Sequence[str]) -> npt.NDArray[np.uint8]:
            labels = np.zeros(size, np.uint8)
            for name, left, top, right, bottom in ...:
                labels[top:bottom, left:right] = classes.index(name)
            return labels

An incoming dataset has the annotation of ``images/a.png`` in ``<folder>/a<suffix>``. The built-in format is
``index_mask``: images of class indices in ``masks/``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from microseg.errors import ImageReadError
from microseg.plugins import create_plugins

__all__ = ["ANNOTATIONS", "AnnotationFormat", "annotation_suffixes", "read_annotation"]

ANNOTATIONS = "microseg.annotations"
"""Entry-point group of the formats."""


class AnnotationFormat(Protocol):
    """Reads the annotation files of one format. The class is instantiated once, without arguments.

    Attributes:
        folder: Folder of an incoming dataset that has the annotation files, beside ``images/``.
        suffixes: Endings of the files, in lower case with the dot.
    """

    folder: str
    suffixes: tuple[str, ...]

    def read(self, path: Path, size: tuple[int, int], classes: Sequence[str]) -> npt.NDArray[np.uint8]:
        """Read the labels of an image. Their size and values are checked by the caller.

        Args:
            path: The annotation file.
            size: Height and width of the image, in pixels.
            classes: Names of the classes in the order of their indices, background first.

        Shape:
            (H, W)

        Returns:
            The class index of each pixel; 255 where a pixel is ignored.

        Raises:
            ImageReadError: The file is damaged, or not of this format.
        """


def annotation_suffixes() -> Mapping[str, tuple[str, ...]]:
    """Endings of annotation files by folder, of all formats."""
    suffixes: dict[str, tuple[str, ...]] = {}
    for each in _formats():
        suffixes[each.folder] = (*suffixes.get(each.folder, ()), *each.suffixes)
    return suffixes


def read_annotation(path: Path, size: tuple[int, int], classes: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Read the labels of an image with the format of the file's folder and suffix; see `AnnotationFormat.read`.

    Raises:
        ImageReadError: No format has such files, or the file cannot be read.
    """
    fitting = [each for each in _formats() if path.parent.name == each.folder and path.suffix.lower() in each.suffixes]
    if len(fitting) > 1:
        names = ", ".join(type(each).__name__ for each in fitting)
        raise ImageReadError(
            f"{path}: expected one annotation format for {path.parent.name}/*{path.suffix}, got several: {names}. "
            "Uninstall the package of the one that is not meant."
        )
    if fitting:
        try:
            return fitting[0].read(path, size, classes)
        except ImageReadError:
            raise
        except Exception as error:  # a format of another package may raise anything
            raise ImageReadError(
                f"{path}: expected an annotation, but it cannot be read: {type(error).__name__}: {error}. "
                "Correct the file, or export it in another format."
            ) from error
    known = ", ".join(f"{folder}/*{suffix}" for folder, all_ in annotation_suffixes().items() for suffix in all_)
    raise ImageReadError(f"{path}: expected an annotation ({known}), got another kind of file. Export it as one.")


def _formats() -> Sequence[AnnotationFormat]:
    return list(create_plugins(ANNOTATIONS, "folder", "suffixes", "read")[0].values())
