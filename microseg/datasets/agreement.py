"""Whether an incoming dataset agrees with its own tables and with the lab's dataset, once its images are checked."""

from collections.abc import Iterator
from pathlib import Path

from microseg.annotations.formats import annotation_suffixes
from microseg.annotations.instance_masks import INSTANCES
from microseg.datasets.checks import CheckedImage
from microseg.datasets.image_table import IMAGE_TABLE_FILE, ImageMetadata, image_key, image_name
from microseg.datasets.lab import LAB_FILE
from microseg.datasets.listing import IncomingFiles, RejectedFile
from microseg.datasets.manifest import ManifestRow
from microseg.errors import LabError
from microseg.slides.folder import is_system_file

__all__ = ["check_image_table", "check_labelled", "unread_files"]


def unread_files(source: Path) -> Iterator[str]:
    """What lies in the folder of an incoming dataset and is not read."""
    known = {"images", "test", INSTANCES, LAB_FILE, IMAGE_TABLE_FILE, *annotation_suffixes()}
    for path in sorted(source.iterdir()):
        if path.name not in known and not is_system_file(path.name):
            yield f"{path.name}{'/' if path.is_dir() else ''}: not read"


def check_image_table(
    source: Path, table: dict[str, ImageMetadata], rows: dict[str, ManifestRow], rejected: tuple[RejectedFile, ...]
) -> None:
    """Check that each line of ``images.csv`` refers to an image, and changes the group of none."""
    if not table:
        return
    groups = {image_key(image_name(row.image)): row.group for row in rows.values()}
    known = groups.keys() | {image_key(image_name(file.file)) for file in rejected}
    if unknown := [stated.file for key, stated in table.items() if key not in known]:
        raise LabError(
            f"{source / IMAGE_TABLE_FILE}: expected files in images/, got {', '.join(unknown[:5])}. "
            "Correct the names or remove the lines."
        )
    for key, stated in table.items():
        if key in groups and stated.group is not None and stated.group != groups[key]:
            raise LabError(
                f"{source / IMAGE_TABLE_FILE}: expected group {groups[key]!r} for {stated.file} as in the dataset, "
                f"got {stated.group!r}. Its split cannot change: remove the line, or give the incoming dataset another "
                "lab name."
            )


def check_labelled(
    source: Path, stated: bool | None, images: tuple[CheckedImage, ...], labelled: int, files: IncomingFiles
) -> None:
    """Check ``labelled`` of ``lab.yaml``, where it is stated, against the incoming images and the whole dataset."""
    if stated and not labelled:
        raise LabError(
            f"{source}: expected masks, as lab.yaml states labelled: true, got no usable one in masks/. "
            "Add the masks, or state labelled: false."
        )
    if stated is None and files.annotations and not files.annotations.keys() & files.images.keys():
        example = files.path_of(next(iter(files.annotations.values()))[0])
        raise LabError(
            f"{source}: expected masks or outlines with the names of images, got others only, such as {example}. "
            "Rename them, or state labelled: false in lab.yaml to ingest the images without."
        )
    masks = any(image.annotation is not None and not image.has_outlines for image in images)
    if stated is False and masks:  # outlines may be corrections, which come later
        raise LabError(
            f"{source}: expected no masks, as lab.yaml states labelled: false, got some. "
            "State labelled: true, or move the masks away."
        )
