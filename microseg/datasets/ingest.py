"""Ingest: check the images of a lab and add them to the lab's dataset."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from microseg.annotations.classes import IGNORE
from microseg.annotations.formats import annotation_suffixes
from microseg.annotations.index_masks import read_mask
from microseg.annotations.instance_masks import INSTANCES, read_instances, write_instances
from microseg.annotations.labels import LabelRegion
from microseg.datasets.checks import (
    CheckedImage,
    IncomingFiles,
    RejectedFile,
    check_images,
    count_slides,
    list_files,
    measure_bit_depth,
)
from microseg.datasets.dataset import LabDataset, ManifestRow, assign_splits, open_lab_dataset, write_manifest
from microseg.datasets.lab import (
    IMAGE_TABLE_FILE,
    LAB_FILE,
    ImageMetadata,
    LabMetadata,
    check_lab_name,
    image_key,
    image_name,
    merge_metadata,
    read_image_table,
    read_lab_metadata,
    write_lab_metadata,
)
from microseg.datasets.numbered_objects import NumberedObjects
from microseg.datasets.quarantine import REASONS_FILE, quarantine_files
from microseg.errors import DataError, LabError
from microseg.files import atomic_write, disk_full_error, link_or_copy
from microseg.slides.folder import is_system_file
from microseg.slides.images import image_digest, write_png
from microseg.slides.pixel_size import StatedMpp, agreed_mpp, same_mpp

__all__ = ["IngestResult", "ingest_lab", "lab_lock"]


@dataclass(frozen=True)
class IngestResult:
    """A lab's dataset after an ingest.

    Attributes:
        lab: Name of the lab.
        folder: Folder of the dataset.
        images: Number of images in the dataset.
        labelled: Number of them with a mask.
        added: Images that were added now.
        relabelled: Images of the dataset that got their mask now, or corrections of it.
        unchanged: Incoming images that were in the dataset already.
        rejected: Incoming files that were not ingested, and why.
        skipped: Incoming files of the operating system.
        notes: What of the annotations is not used, or was changed, which pixel sizes override those of files, and what
            lies beside the dataset and is not read, as ``<file>: <what>``.
        quarantine: Folder with copies of the rejected files and the reasons; None where there are none.
        digest: Version of the dataset, see `DatasetVersion`; None before it is committed.
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
    bit depth of images of 16 bits is that of ``lab.yaml`` or of the dataset, else one that holds those of all images,
    and is kept with the dataset.

    Args:
        source: Folder of the incoming dataset.
        labs: Folder of all labs' datasets; this one's is ``labs/<lab>``.
        quarantine: Folder of all labs' rejected files; this one's are copied to ``quarantine/<lab>``.
        metadata: Contents of ``lab.yaml``, where it was read already.
        val_fraction: Fraction of the patients or slides for validation, 0..1.
        test_fraction: Fraction of the patients or slides for the test, 0..1.
        seed: Seed of the assignment to splits.
        allowed_roots: Folders outside the incoming dataset that links in it may lead to; other links are rejected.
        progress: Called with the number of images checked and their total.

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
        if metadata.bit_depth is None and (measured := measure_bit_depth(files)) is not None:
            metadata = metadata.model_copy(update={"bit_depth": measured})
        mpp, save = partial(_stated_mpp, table, metadata), partial(_stage, staged, present)
        accepted = check_images(
            files, metadata.label_classes, mpp=mpp, bit_depth=metadata.bit_depth, save=save, progress=progress
        )
        update = _DatasetUpdate(metadata, dataset, table, staged)
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
        if not update.accepted:
            examples = "; ".join(f"{file.file}: {file.reason}" for file in rejected[:3])
            raise LabError(
                f"{source}: expected at least one usable image, got none. {_summary(rejected, rejects)} {examples}"
            )
        _check_image_table(source, table, update.rows, rejected)
        rows = _with_splits(update.rows, dataset, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
        labelled = sum(row.mask is not None for row in rows)
        _check_labelled(source, stated_labelled, accepted, labelled, files)
        metadata = metadata.model_copy(update={"labelled": labelled > 0})
        numbers = update.relabelled or any((staged / INSTANCES).iterdir())
        if dataset is None or (metadata, rows) != (dataset.metadata, dataset.rows) or numbers:
            _replace_dataset(folder, staged, LabDataset(folder, metadata, rows), update.new)
    return IngestResult(
        lab=metadata.lab,
        folder=folder,
        images=len(rows),
        labelled=labelled,
        added=update.added,
        relabelled=update.relabelled,
        unchanged=update.accepted - update.added - update.relabelled,
        rejected=rejected,
        skipped=tuple(sorted(files.skipped)),
        quarantine=rejects if rejected else None,
        notes=(
            *(f"{files.path_of(it.annotation)}: {note}" for it in accepted if it.annotation for note in it.notes),
            *update.notes,
            *_unread(source),
        ),
    )


@contextmanager
def lab_lock(labs: Path, lab: str) -> Iterator[Path]:
    """Lock a lab's dataset for one writer, after repairing what a killed process may have left.

    Args:
        labs: Folder of all labs' datasets; created when missing.
        lab: Name of the lab.

    Yields:
        Path at which the writer can build the new dataset, to rename it in the end; what is left there is removed.
    """
    labs.mkdir(parents=True, exist_ok=True)
    with FileLock(labs / f".{check_lab_name(lab)}.lock"):
        folder, new, old = labs / lab, labs / f".{lab}.new", labs / f".{lab}.old"
        if old.exists() and not folder.exists():
            old.rename(folder)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
        try:
            yield new
        finally:
            shutil.rmtree(new, ignore_errors=True)


class _DatasetUpdate:
    """The rows of a dataset after accepted images are added, one by one.

    Attributes:
        rows: The rows, by `image_key`.
        new: Names of the staged files, by their paths in the dataset.
        notes: Pixel sizes that override those of files.
        accepted: Number of images accepted.
        added: Number of images that are new.
        relabelled: Number of images that got their mask, or corrections of it.
    """

    def __init__(
        self, metadata: LabMetadata, dataset: LabDataset | None, table: dict[str, ImageMetadata], staged: Path
    ) -> None:
        self._metadata, self._dataset, self._table, self._staged = metadata, dataset, table, staged
        self.rows: dict[str, ManifestRow] = {}
        for row in dataset.rows if dataset else ():
            key = image_key(image_name(row.image))
            stated = table.get(key)
            self.rows[key] = replace(row, mpp=(stated and stated.mpp) or row.mpp or metadata.mpp)
        self._by_content = {row.sha256: row for row in self.rows.values()}
        self.new: dict[str, str] = {}
        self.notes: list[str] = []
        self.accepted = self.added = self.relabelled = 0

    def add(self, image: CheckedImage) -> str | None:
        """Add an image and its mask; returns the reason where both are rejected."""
        key = image_key(image.name)
        row = self.rows.get(key)
        stated = self._table.get(key, ImageMetadata(image.name, None, None))
        if reason := self._contradiction(image, row):
            return reason
        try:
            mpp = agreed_mpp(image.image, image.mpp, self._stated_size(stated, row))
        except DataError as error:
            return str(error).removeprefix(f"{image.image}: ")
        if image.mpp is not None and stated.mpp is not None and not same_mpp(image.mpp, stated.mpp):
            self.notes.append(
                f"{image.image.name}: {stated.mpp} microns per pixel of images.csv override {image.mpp} of the file"
            )
        self.accepted += 1
        file = f"{image.name}.png"
        if row is None:
            row = ManifestRow(
                image=f"images/{file}",
                mask=f"masks/{file}" if image.annotation else None,
                group=stated.group or image.name,
                split="train",
                width=image.width,
                height=image.height,
                mpp=mpp,
                sha256=image.sha256,
            )
            self.new[row.image] = f"images/{file}"
            self.added += 1
        elif row.mask is None and image.annotation is not None:
            row = replace(row, mask=f"masks/{Path(row.image).name}")
            self.relabelled += 1
        elif self._dataset is not None and image.has_outlines and _correct(self._dataset, row, self._staged, file):
            self.relabelled += 1
        else:
            image = replace(image, annotation=None)  # the dataset has its mask
        if row.mask is not None and image.annotation is not None:
            self.new[row.mask] = f"masks/{file}"
        self.rows[key] = self._by_content[image.sha256] = replace(row, mpp=row.mpp or image.mpp)
        return None

    def _stated_size(self, stated: ImageMetadata, row: ManifestRow | None) -> StatedMpp | None:
        """Pixel size that the lab or the dataset states of an image."""
        if stated.mpp is not None:
            return StatedMpp(stated.mpp, "images.csv", overrides=True)
        if row is not None and row.mpp is not None:  # what the dataset has was decided when it was ingested
            return StatedMpp(row.mpp, "the dataset", overrides=True)
        return None if self._metadata.mpp is None else StatedMpp(self._metadata.mpp, "lab.yaml")

    def _contradiction(self, image: CheckedImage, row: ManifestRow | None) -> str | None:
        """How an image or its mask contradicts the dataset; None when it does not."""
        if row is None:
            same = self._by_content.get(image.sha256)
            return None if same is None else f"expected new images, got the content of {same.image}. Leave it out."
        if row.sha256 != image.sha256:
            return f"expected a new name, got that of {row.image}, which has other content. Rename the new image."
        if self._dataset is None or row.mask is None or image.annotation is None or image.has_outlines:
            return None
        if image_digest(read_mask(self._dataset.mask_path(row))) != image.labels_sha256:
            return (
                f"expected the mask that the dataset has for {row.image}, got another. Send corrections as outlines "
                "of the regions that were corrected, or the masks under a new lab name."
            )
        return None


def _with_splits(
    rows: dict[str, ManifestRow], dataset: LabDataset | None, *, val_fraction: float, test_fraction: float, seed: int
) -> tuple[ManifestRow, ...]:
    """Assign splits to the new rows, to labelled groups separately, so that a few masks are in every split.

    A group that gets its first labels is assigned again: without them its split had no meaning.
    """
    splits = {row.group: row.split for row in dataset.rows} if dataset else {}
    before = {row.group for row in dataset.rows if row.mask is not None} if dataset else set()
    labelled = {row.group for row in rows.values() if row.mask is not None}
    others = {row.group for row in rows.values()} - labelled
    fractions = {"val_fraction": val_fraction, "test_fraction": test_fraction}
    splits = {
        **assign_splits(
            labelled, **fractions, seed=seed, existing={g: s for g, s in splits.items() if g in labelled & before}
        ),
        **assign_splits(others, **fractions, seed=seed, existing={g: s for g, s in splits.items() if g in others}),
    }
    return tuple(replace(row, split=splits[row.group]) for _, row in sorted(rows.items()))


def _summary(rejected: tuple[RejectedFile, ...], quarantine: Path) -> str:
    slides = f" (whole slides: {count})" if (count := count_slides(rejected)) else ""
    return f"Files rejected: {len(rejected)}{slides}; reasons: {quarantine / REASONS_FILE}."


# ---- checks of the incoming dataset as a whole


def _unread(source: Path) -> Iterator[str]:
    """What lies in the folder of an incoming dataset and is not read."""
    known = {"images", "test", INSTANCES, LAB_FILE, IMAGE_TABLE_FILE, *annotation_suffixes()}
    for path in sorted(source.iterdir()):
        if path.name not in known and not is_system_file(path.name):
            yield f"{path.name}{'/' if path.is_dir() else ''}: not read"


def _check_image_table(
    source: Path, table: dict[str, ImageMetadata], rows: dict[str, ManifestRow], rejected: tuple[RejectedFile, ...]
) -> None:
    """Check that each line of ``images.csv`` refers to an image, and changes the group of none."""
    known = rows.keys() | {image_key(image_name(file.file)) for file in rejected}
    if unknown := [stated.file for key, stated in table.items() if key not in known]:
        raise LabError(
            f"{source / IMAGE_TABLE_FILE}: expected files in images/, got {', '.join(unknown[:5])}. "
            "Correct the names or remove the lines."
        )
    for key, stated in table.items():
        if key in rows and stated.group is not None and stated.group != rows[key].group:
            raise LabError(
                f"{source / IMAGE_TABLE_FILE}: expected group {rows[key].group!r} for {stated.file} as in the dataset, "
                f"got {stated.group!r}. Its split cannot change: remove the line, or give the incoming dataset another "
                "lab name."
            )


def _check_labelled(
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


def _correct(dataset: LabDataset, row: ManifestRow, staged: Path, file: str) -> bool:
    """Merge a staged mask with that of the dataset, which is kept where the new one is not known.

    An object that a corrected region cuts keeps its part outside of it, as another object.

    Returns:
        Whether anything changes.
    """
    old, new = read_mask(dataset.mask_path(row)), read_mask(staged / "masks" / file)
    before, after = dataset.instances_path(row), staged / INSTANCES / file
    earlier = _number(old) if before is None else read_instances(before)
    numbers = read_instances(after) if after.is_file() else _number(new)
    merged = np.where(new == IGNORE, old, new)
    numbers = _renumber(np.where(new == IGNORE, earlier, np.where(numbers > 0, numbers + earlier.max(), 0)))
    if np.array_equal(merged, old) and np.array_equal(numbers, _renumber(earlier)):
        return False
    write_png(staged / "masks" / file, merged)
    if before is not None or after.is_file():
        write_instances(after, numbers)
    return True


def _number(mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """Number the regions of a mask of class indices; pixels that meet at an edge are connected."""
    from skimage.measure import label

    classes = np.where(mask == IGNORE, 0, mask)
    return np.asarray(label(classes, background=0, connectivity=1), np.int32)  # type: ignore[no-untyped-call]


def _renumber(numbers: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
    """Number objects in the order of their first pixels, row by row."""
    found, first, places = np.unique(np.append(0, numbers), return_index=True, return_inverse=True)
    table = np.zeros(len(found), np.int32)
    table[first.argsort()] = np.arange(len(found))
    return table[places[1:]].reshape(numbers.shape)


def _mask_of(image: CheckedImage, staged: Path, dataset: LabDataset | None) -> Path | None:
    """File of the mask of an incoming image: the incoming one, or that of the dataset."""
    files = [staged / "masks" / f"{image.name}.png"]
    if dataset is not None:
        files += [dataset.mask_path(row) for row in dataset.rows if row.sha256 == image.sha256 and row.mask is not None]
    return next((file for file in files if file.is_file()), None)


def _replace_dataset(folder: Path, staged: Path, dataset: LabDataset, new: dict[str, str]) -> None:
    """Complete the new folder with the files of the old one, and let it replace the old one."""
    building, old = staged.parent, folder.with_name(f".{folder.name}.old")
    for part in ("images", "masks") if dataset.metadata.labelled else ("images",):
        (building / part).mkdir()
    for path in (path for row in dataset.rows for path in (row.image, row.mask) if path is not None):
        if path in new:
            (staged / new[path]).replace(building / path)
        else:
            link_or_copy(folder / path, building / path)
    for row in dataset.rows:
        file = f"{INSTANCES}/{Path(row.image).name}"
        found = staged / (new[row.mask].replace("masks", INSTANCES, 1) if row.mask in new else file)
        if row.mask not in new and not found.is_file():
            found = folder / file
        if found.is_file():
            (building / INSTANCES).mkdir(exist_ok=True)
            link_or_copy(found, building / file)
    shutil.rmtree(staged)
    write_manifest(building, dataset.rows)
    write_lab_metadata(building, dataset.metadata)
    if folder.exists():
        folder.rename(old)
    building.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
