"""Annotation formats: the extension point for files of labels, and the door to read and write them.

A package adds a format by one class, which is named under the entry-point group ``microseg.annotations``::

    class Rectangles:
        folder = "annotations"
        suffixes = (".csv",)

        def can_read(self, file: AnnotationFile, classes: LabelClasses) -> bool:
            return file.path.suffix.lower() == ".csv"

        def read(self, file: AnnotationFile, image: AnnotatedImage, classes: LabelClasses) -> Outlines:
            outlines = OutlineBuilder()
            for name, left, top, right, bottom in ...:
                outlines.add(name, [[[(left, top), (right, top), (right, bottom), (left, bottom)]]])
            return outlines.build()

An incoming dataset has the annotation of ``images/a.png`` in ``<folder>/a<suffix>``; outlines may also lie beside the
image. A format that has ``write`` can be written, too.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from microseg.annotations.classes import LabelClasses
from microseg.annotations.files import AnnotatedImage, AnnotationFile, open_annotation, read_errors
from microseg.annotations.labels import Labels, OutlineLabels
from microseg.annotations.outlines import Outlines
from microseg.errors import ImageReadError, MicrosegError
from microseg.files import atomic_write
from microseg.plugins import create_plugins, load_plugin

__all__ = [
    "ANNOTATIONS",
    "OUTLINES",
    "AnnotationFormat",
    "annotation_suffixes",
    "is_annotation",
    "read_annotation",
    "write_annotation",
]

ANNOTATIONS = "microseg.annotations"
"""Entry-point group of the formats."""

OUTLINES = "annotations"
"""Folder of the formats whose files may also lie beside the images."""


class AnnotationFormat(Protocol):
    """Reads the annotation files of one format. The class is instantiated once, without arguments.

    Attributes:
        folder: Folder of an incoming dataset that has the annotation files, beside ``images/``.
        suffixes: Endings of the files, in lower case with the dot.
    """

    folder: str
    suffixes: tuple[str, ...]

    def can_read(self, file: AnnotationFile, classes: LabelClasses) -> bool:
        """Whether a file is of this format, by its content.

        Args:
            file: A file in ``folder``.
            classes: What the lab states about its annotations.
        """

    def read(self, file: AnnotationFile, image: AnnotatedImage, classes: LabelClasses) -> Labels | Outlines:
        """Read the annotations of an image. Names, overlaps and borders are the caller's.

        Args:
            file: The annotation file.
            image: The image that it is for. A file that states another one is an error.
            classes: What the lab states about its annotations.

        Returns:
            Named outlines, or labels of another kind.

        Raises:
            ImageReadError: The file is damaged, or of another image.
        """


def annotation_suffixes() -> Mapping[str, tuple[str, ...]]:
    """Endings of annotation files by folder, of all formats."""
    suffixes: dict[str, tuple[str, ...]] = {}
    for each in _formats():
        suffixes[each.folder] = tuple(dict.fromkeys((*suffixes.get(each.folder, ()), *each.suffixes)))
    return suffixes


def is_annotation(path: Path, classes: LabelClasses) -> bool:
    """Whether a file of outlines beside an image is one: some format can read it, or it is a damaged one.

    Files of other programs, such as metadata of a microscope in JSON or XML, are none.
    """
    try:
        file = open_annotation(path)
        return any(each.folder == OUTLINES and each.can_read(file, classes) for each in _formats())
    except MicrosegError:  # reported when it is read
        return True


def read_annotation(path: Path, image: AnnotatedImage, classes: LabelClasses) -> Labels:
    """Read the labels of an image with the format of the file's folder and content; see `AnnotationFormat`.

    Nothing is drawn before the labels are read, region by region.

    Raises:
        ImageReadError: No format has such files, the file cannot be read, is of another image, or its labels are not
            clear.
    """
    file = open_annotation(path)
    folders = {path.parent.name, path.parent.parent.name, OUTLINES if path.parent.name == "images" else ""}
    with read_errors(path):
        fitting = [each for each in _formats() if each.folder in folders and each.can_read(file, classes)]
        if len(fitting) > 1:
            names = ", ".join(type(each).__name__ for each in fitting)
            raise ImageReadError(
                f"expected one annotation format for {path.parent.name}/*{path.suffix}, got several: {names}. "
                "Uninstall the package of the one that is not meant."
            )
        if not fitting:
            known = ", ".join(f"{folder}/*{it}" for folder, every in annotation_suffixes().items() for it in every)
            raise ImageReadError(f"expected an annotation ({known}), got another kind of file. Export it as one.")
        found = fitting[0].read(file, image, classes)
        labels = OutlineLabels(found, classes, image.width, image.height) if isinstance(found, Outlines) else found
        if (labels.width, labels.height) != (image.width, image.height):
            raise ImageReadError(
                f"expected the image's size {image.width} x {image.height}, got {labels.width} x {labels.height}. "
                "Export the mask at the image's size."
            )
        return labels


def write_annotation(path: Path, outlines: Outlines, image: AnnotatedImage, name: str = "geojson") -> None:
    """Write outlines, atomically.

    Args:
        path: The file; its folder exists.
        outlines: The outlines, in pixels of the image's finest level.
        image: Their image.
        name: Name of the format.

    Raises:
        PluginError: No format has that name.
        ImageReadError: The format cannot be written.
    """
    writer = load_plugin(ANNOTATIONS, name)()
    if not hasattr(writer, "write"):
        raise ImageReadError(f"{path}: expected a format that can be written, got {name!r}. Use geojson.")
    with atomic_write(path) as part:
        writer.write(part, outlines, image)


def _formats() -> Sequence[AnnotationFormat]:
    return list(create_plugins(ANNOTATIONS, "folder", "suffixes", "can_read", "read")[0].values())
