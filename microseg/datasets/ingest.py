"""Ingest: check the images of a lab and add them to the lab's dataset."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from microseg.annotations.instance_masks import INSTANCES, write_instances
from microseg.annotations.labels import LabelRegion
from microseg.datasets.agreement import check_image_table, check_labelled, unread_files
from microseg.datasets.checks import CheckedImage, check_images, measure_bit_depth
from microseg.datasets.dataset import LabDataset, open_lab_dataset, with_splits
from microseg.datasets.dataset_folder import lab_lock, replace_dataset
from microseg.datasets.image_table import ImageMetadata, image_key, image_name, read_image_table
from microseg.datasets.image_update import ImageUpdate
from microseg.datasets.lab import (
    LabMetadata,
    read_lab_metadata,
)
from microseg.datasets.lab_merge import merge_metadata
from microseg.datasets.listing import IncomingFiles, RejectedFile, count_slides, list_files
from microseg.datasets.numbered_objects import NumberedObjects
from microseg.datasets.quarantine import REASONS_FILE, quarantine_files
from microseg.datasets.slide_update import SlideOptions, SlideUpdate
from microseg.errors import LabError
from microseg.files import atomic_write, disk_full_error
from microseg.slides import limited
from microseg.slides.identity import KnownHashes
from microseg.slides.images import write_png

HASHES_FILE = ".hashes.json"
"""Known hashes of slides, in the folder of all labs' datasets."""

__all__ = ["IngestResult", "ingest_lab"]


@dataclass(frozen=True)
class IngestResult:
    """A lab's dataset after an ingest.

    Attributes:
        lab: Name of the lab.
        folder: Folder of the dataset.
        images: Number of images and slides in the dataset.
        labelled: Number of them with labels.
        added: Images that were added now.
        relabelled: Images of the dataset that got their mask now, or corrections of it.
        unchanged: Incoming images that were in the dataset already.
        rejected: Incoming files that were not ingested, and why.
        skipped: Incoming files of the operating system.
        notes: What of the annotations is not used, or was changed, which pixel sizes override those of files, and what
            lies beside the dataset and is not read, as ``<file>: <what>``.
        quarantine: Folder with copies of the rejected files and the reasons; None where there are none.
        digest: Version of the dataset, see `DatasetVersion`; None before it is committed.
        slides: Number of slides in the dataset.
    """

    lab: str
    folder: Path
    images: int
    labelled: int
    added: int
    relabelled: int
    unchanged: int
    rejected: tuple[RejectedFile, ...]
    skipped: tuple[str, ...]
    quarantine: Path | None
    digest: str | None = None
    notes: tuple[str, ...] = ()
    slides: int = 0

    @property
    def rejections(self) -> str:
        """Number of rejected files and the file of the reasons, in a sentence; empty when there are none."""
        return "" if self.quarantine is None else _summary(self.rejected, self.quarantine)


def ingest_lab(
    source: Path,
    labs: Path,
    quarantine: Path,
    *,
    metadata: LabMetadata | None = None,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    seed: int = 0,
    allowed_roots: Iterable[Path] = (),
    slides: SlideOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> IngestResult:
    """Check an incoming dataset and add it to the lab's dataset.

    An incoming dataset is a folder with ``lab.yaml``, ``images/``, where labelled ``masks/`` (same names as the
    images) or the folder of another annotation format, ``instances/`` where objects are numbered (see
    `NumberedObjects`), and optionally ``images.csv`` (see `read_image_table`). Nothing else in it is read, ``test/`` in
    particular, and nothing in it is changed. The dataset holds 8-bit RGB and
    class-index PNGs; later images of the same lab are added, masks may follow for images without one, and nothing in
    the dataset is ever changed. Each incoming image is decoded once: the pixels that were checked are those that are
    written. The folder of the dataset is replaced as a whole: after a crash the next call, or `DatasetStore.commit`,
    finds the old one.

    An image's pixel size is taken from ``images.csv``, else from ``lab.yaml`` or the file itself. An image is rejected
    where these two differ by more than rounding; one of ``images.csv`` overrides that of the file, which is noted. The
    bit depth of images of 16 bits, or the range of each of their channels, is that of ``lab.yaml`` or of the dataset,
    else one that is measured over all images, and is kept with the dataset. Channels that ``lab.yaml`` states become
    red, green and blue of the dataset's images.

    Args:
        source: Folder of the incoming dataset.
        labs: Folder of all labs' datasets; this one's is ``labs/<lab>``.
        quarantine: Folder of all labs' rejected files; this one's are copied to ``quarantine/<lab>``.
        metadata: Contents of ``lab.yaml``, where it was read already.
        val_fraction: Fraction of the patients or slides for validation, 0..1.
        test_fraction: Fraction of the patients or slides for the test, 0..1.
        seed: Seed of the assignment to splits.
        allowed_roots: Folders outside the incoming dataset that links in it may lead to; other links are rejected.
        slides: How slides are ingested; None for the defaults.
        progress: Called with the number of images and slides checked and their total.

    Returns:
        What was ingested and what was rejected.

    Raises:
        LabError: The incoming dataset as a whole cannot be used: its folder, metadata or table is missing or invalid,
            none of its images is accepted, or it contradicts the dataset. The dataset is then unchanged.
        NoSpaceError: The disk is full. The dataset is then unchanged.
    """
    source, labs, quarantine, roots = Path(source), Path(labs), Path(quarantine), tuple(allowed_roots)
    if metadata is None:
        metadata = read_lab_metadata(source, roots=roots)
    folder, rejects = labs / metadata.lab, quarantine / metadata.lab
    if folder.resolve() in (source.resolve(), *source.resolve().parents):
        raise LabError(
            f"{source}: expected an incoming dataset outside {folder}, got the dataset itself. Give another folder."
        )
    stated_labelled = metadata.labelled if "labelled" in metadata.model_fields_set else None
    table, files = read_image_table(source, roots), list_files(source, metadata.label_classes, roots)
    unchanged = f"The dataset of {metadata.lab} is unchanged, and the incoming dataset still has all its files."
    with disk_full_error(folder, kept=unchanged), lab_lock(labs, metadata.lab) as building:
        staged = building / "staged"
        for part in ("images", "masks", INSTANCES):
            (staged / part).mkdir(parents=True)
        dataset = open_lab_dataset(folder) if folder.is_dir() and any(folder.iterdir()) else None
        if dataset is not None:
            metadata = merge_metadata(dataset.metadata, metadata)
        present = {row.sha256 for row in dataset.rows} if dataset else set()
        metadata = _with_measured_values(metadata, files, dataset)
        hashes = KnownHashes(labs / HASHES_FILE)
        slide_update = SlideUpdate(metadata, dataset, table, staged, hashes, slides or SlideOptions())
        total = len(files.slides) + len(files.pairs)
        for done, (slide, annotation) in enumerate(files.slides, start=1):
            slide_update.add(files, slide, annotation)
            if progress is not None:
                progress(done, total)
        hashes.save()
        mpp, save = partial(_stated_mpp, table, metadata), partial(_stage, staged, present)
        images_checked = None if progress is None else lambda done, _: progress(len(files.slides) + done, total)
        accepted = check_images(
            files, metadata.label_classes, mpp=mpp, reading=metadata.read_options, save=save, progress=images_checked
        )
        update = ImageUpdate(metadata, dataset, table, staged)
        numbered = NumberedObjects(source, staged)
        for image in accepted:
            if reason := numbered.stage(image, _mask_of(image, staged, dataset)) or update.add(image):
                files.reject(image.image, reason)
                if image.annotation is not None:
                    files.reject(image.annotation, f"its image {image.image.name} is rejected: {reason}")
        numbered.reject_others(files)
        rejected = tuple(file for _, file in sorted(files.rejected.items()))
        if rejected:
            quarantine_files(source, rejected, rejects, paths=files.paths, roots=roots)
        if not update.accepted and not slide_update.accepted:
            examples = "; ".join(f"{file.file}: {file.reason}" for file in rejected[:3])
            raise LabError(
                f"{source}: expected at least one usable image, got none. {_summary(rejected, rejects)} {examples}"
            )
        rows_by_key = update.rows | slide_update.rows
        check_image_table(source, table, rows_by_key, rejected)
        rows = with_splits(rows_by_key, dataset, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
        labelled = len({row.slide or row.name for row in rows if row.mask is not None})
        check_labelled(source, stated_labelled, accepted, labelled, files)
        metadata = metadata.model_copy(update={"labelled": labelled > 0})
        numbers = update.relabelled or slide_update.relabelled or any((staged / INSTANCES).iterdir())
        updated = LabDataset(folder, metadata, rows, slide_update.table)
        if dataset is None or updated != dataset or numbers:
            new = update.new | {f"masks/{name}.png": f"masks/{name}.png" for name in slide_update.masks}
            replace_dataset(folder, staged, updated, new)
    return IngestResult(
        lab=metadata.lab,
        folder=folder,
        images=len({row.slide or row.name for row in rows}),
        labelled=labelled,
        added=update.added + slide_update.added,
        relabelled=update.relabelled + slide_update.relabelled,
        unchanged=sum(it.accepted - it.added - it.relabelled for it in (update, slide_update)),
        slides=len(slide_update.slides),
        rejected=rejected,
        skipped=tuple(sorted(files.skipped)),
        quarantine=rejects if rejected else None,
        notes=(
            *(f"{files.path_of(it.annotation)}: {note}" for it in accepted if it.annotation for note in it.notes),
            *update.notes,
            *slide_update.notes,
            *unread_files(source),
        ),
    )


def _summary(rejected: tuple[RejectedFile, ...], quarantine: Path) -> str:
    slides = f" (whole slides: {count})" if (count := count_slides(rejected)) else ""
    return f"Files rejected: {len(rejected)}{slides}; reasons: {quarantine / REASONS_FILE}."


def _with_measured_values(metadata: LabMetadata, files: IncomingFiles, dataset: LabDataset | None) -> LabMetadata:
    """The metadata with the bit depth, or the ranges of channels, of images of 16 bits."""
    if metadata.channels:
        paths = [path for path, _ in (*files.pairs, *files.slides)]
        channels = limited.measure_ranges(paths, metadata.channels)
        if dataset is not None and channels != metadata.channels:
            raise LabError(
                f"lab {metadata.lab}: expected values of 8 bits, or a range that the files state, as in the dataset, "
                "got images of 16 bits without one. Send them under another lab name."
            )
        return metadata.model_copy(update={"channels": channels})
    if metadata.bit_depth is None and (measured := measure_bit_depth(files)) is not None:
        return metadata.model_copy(update={"bit_depth": measured})
    return metadata


# ---- writing


def _stage(
    staged: Path,
    present: set[str],
    image: CheckedImage,
    pixels: npt.NDArray[np.uint8],
    png: bytes | None,
    labels: LabelRegion | None,
) -> None:
    """Write the image that was checked, unless the dataset has it, and its labels."""
    file = f"{image.name}.png"
    if image.sha256 not in present:
        if png is not None:
            with atomic_write(staged / "images" / file, len(png)) as part:
                part.write_bytes(png)
        else:
            write_png(staged / "images" / file, pixels)
    if labels is not None:
        write_png(staged / "masks" / file, labels.classes)
        if labels.instances is not None:
            write_instances(staged / INSTANCES / file, labels.instances)


def _stated_mpp(table: dict[str, ImageMetadata], metadata: LabMetadata, image: Path) -> float | None:
    """Microns per pixel that the lab states of an image."""
    stated = table.get(image_key(image_name(image)))
    return (stated and stated.mpp) or metadata.mpp


def _mask_of(image: CheckedImage, staged: Path, dataset: LabDataset | None) -> Path | None:
    """File of the mask of an incoming image: the incoming one, or that of the dataset."""
    files = [staged / "masks" / f"{image.name}.png"]
    if dataset is not None:
        files += [dataset.mask_path(row) for row in dataset.rows if row.sha256 == image.sha256 and row.mask is not None]
    return next((file for file in files if file.is_file()), None)
