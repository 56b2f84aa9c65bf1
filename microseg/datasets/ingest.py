"""From a lab's folder to a checked dataset."""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from microseg.annotations.index_masks import read_mask
from microseg.datasets.checks import CheckedImage, RejectedFile, check_lab_files, count_slides
from microseg.datasets.dataset import LabDataset, ManifestRow, assign_splits, open_lab_dataset, write_manifest
from microseg.datasets.lab import (
    IMAGE_TABLE_FILE,
    ImageMetadata,
    LabMetadata,
    check_lab_name,
    image_key,
    image_name,
    read_image_table,
    read_lab_metadata,
    write_lab_metadata,
)
from microseg.datasets.quarantine import quarantine_files
from microseg.errors import LabError
from microseg.files import link_or_copy
from microseg.slides.images import image_digest, read_image, write_png

__all__ = ["DatasetUpdate", "IngestResult", "check_image_table", "ingest_lab", "lab_lock", "merge_metadata"]

_WORKERS = 4


@dataclass(frozen=True)
class IngestResult:
    """What `ingest_lab` did.

    Attributes:
        lab: The lab's name.
        folder: Its dataset.
        images: Images in the dataset now.
        labelled: Those of them with a mask.
        added: Images new with this delivery.
        relabelled: Images of an earlier delivery that got their mask with this one.
        unchanged: Images of this delivery that were in the dataset already.
        refused: Files of this delivery that were not taken over, and why.
        skipped: Files of the operating system in this delivery.
    """

    lab: str
    folder: Path
    images: int
    labelled: int
    added: int
    relabelled: int
    unchanged: int
    refused: tuple[RejectedFile, ...]
    skipped: tuple[str, ...]

    @property
    def slides(self) -> int:
        """Whole slides among the refused files."""
        return count_slides(self.refused)

    def to_dict(self) -> dict[str, Any]:
        """Give the same as values that JSON can hold."""
        return asdict(self) | {
            "folder": str(self.folder),
            "refused": [asdict(refusal) for refusal in self.refused],
            "skipped": list(self.skipped),
        }


def ingest_lab(
    source: Path,
    labs: Path,
    quarantine: Path,
    *,
    name: str | None = None,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> IngestResult:
    """Check a lab's delivery and take it over into the lab's dataset.

    A delivery is a folder with ``lab.yaml``, ``images/``, where labelled ``masks/`` (same names as the images), and
    optionally ``images.csv`` (see `read_image_list`). Nothing else in it is read, ``test/`` in particular, and nothing
    in it is changed. The dataset holds 8-bit RGB and class-index PNGs; a later delivery of the same lab adds to it,
    may bring masks for images without one, and never changes what is there. The dataset's folder is replaced as a
    whole: after a crash the next call, or `DatasetStore.commit`, finds the old one.

    An image's pixel size is what ``images.csv`` says, else ``lab.yaml``, else the file itself.

    Args:
        source: The delivery's folder.
        labs: Folder of all labs' datasets; this one's becomes ``labs/<lab>``.
        quarantine: Folder of all labs' refused files; this one's are copied to ``quarantine/<lab>``.
        name: The lab's name; when ``lab.yaml`` states one, it must be the same.
        val_fraction: Share of the patients or slides for validation, 0..1.
        test_fraction: Share of the patients or slides for the test, 0..1.
        seed: Of the assignment to splits.
        progress: Called with the number of images checked and of all.

    Returns:
        What was taken over and what was refused.

    Raises:
        LabError: The delivery as a whole cannot be used: its folder, card or list is missing or wrong, no image in it
            can be accepted, or it contradicts the dataset. The dataset is then unchanged.
    """
    source, labs, quarantine = Path(source), Path(labs), Path(quarantine)
    if not source.is_dir():
        raise LabError(f"{source}: expected the folder of a lab's images, found none. Check the path.")
    card = read_lab_metadata(source, lab=None if name is None else check_lab_name(name))
    folder = labs / card.lab
    if folder.resolve() in (source.resolve(), *source.resolve().parents):
        raise LabError(f"{source}: expected a delivery outside {folder}, got the dataset itself. Give another folder.")
    said_labelled = card.labelled if "labelled" in card.model_fields_set else None
    facts = read_image_table(source)
    check = check_lab_files(source, card.classes, progress=progress)
    with lab_lock(labs, card.lab):
        dataset = open_lab_dataset(folder) if folder.is_dir() and any(folder.iterdir()) else None
        if dataset is not None:
            card = merge_metadata(dataset.metadata, card)
        merge = DatasetUpdate(card, dataset, facts)
        for image in check.accepted:
            merge.take(image)
        refused = tuple(sorted({*check.refused, *merge.refused}, key=lambda refusal: refusal.file))
        if refused:
            quarantine_files(source, refused, quarantine / card.lab)
        if not merge.taken:
            raise _nothing_accepted(source, refused, quarantine / card.lab)
        check_image_table(source, facts, merge.rows, refused)
        rows = _with_splits(merge.rows, dataset, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
        labelled = sum(row.mask is not None for row in rows)
        _check_labels(source, said_labelled, check.accepted, labelled)
        card = card.model_copy(update={"labelled": labelled > 0})
        if dataset is None or (card, rows) != (dataset.metadata, dataset.rows):
            _replace_dataset(folder, card, rows, dataset, merge.new)
    return IngestResult(
        lab=card.lab,
        folder=folder,
        images=len(rows),
        labelled=labelled,
        added=merge.added,
        relabelled=len(merge.new) - merge.added,
        unchanged=merge.taken - len(merge.new),
        refused=refused,
        skipped=check.skipped,
    )


@contextmanager
def lab_lock(labs: Path, lab: str) -> Iterator[None]:
    """Keep others from replacing a lab's dataset, after mending what a killed process may have left.

    Args:
        labs: Folder of all labs' datasets; made when missing.
        lab: The lab's name.
    """
    labs.mkdir(parents=True, exist_ok=True)
    with FileLock(labs / f".{check_lab_name(lab)}.lock"):
        folder, new, old = labs / lab, labs / f".{lab}.new", labs / f".{lab}.old"
        if old.exists() and not folder.exists():
            old.rename(folder)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _with_splits(
    rows: dict[str, ManifestRow], dataset: LabDataset | None, *, val_fraction: float, test_fraction: float, seed: int
) -> tuple[ManifestRow, ...]:
    """Give the new rows their splits: labelled groups by themselves first, so that a few masks reach every split."""
    splits = {row.group: row.split for row in dataset.rows} if dataset else {}
    labelled = {row.group for row in rows.values() if row.mask is not None}
    others = {row.group for row in rows.values()} - labelled
    fractions = {"val_fraction": val_fraction, "test_fraction": test_fraction}
    splits = {
        **assign_splits(labelled, **fractions, seed=seed, existing={g: s for g, s in splits.items() if g in labelled}),
        **assign_splits(others, **fractions, seed=seed, existing={g: s for g, s in splits.items() if g in others}),
    }
    return tuple(replace(row, split=splits[row.group]) for _, row in sorted(rows.items()))


def _check_labels(source: Path, said: bool | None, images: tuple[CheckedImage, ...], labelled: int) -> None:
    """See that ``labelled`` in ``lab.yaml``, where it is said, is true of the delivery or of the whole dataset."""
    if said and not labelled:
        raise LabError(
            f"{source}: expected masks, as lab.yaml says labelled: true, got no usable one in masks/. "
            "Add the masks, or say labelled: false."
        )
    if said is False and any(image.mask is not None for image in images):
        raise LabError(
            f"{source}: expected no masks, as lab.yaml says labelled: false, got some in masks/. "
            "Say labelled: true, or move the masks away."
        )


def _nothing_accepted(source: Path, refused: tuple[RejectedFile, ...], kept: Path) -> LabError:
    slides = f", whole slides among them: {count}" if (count := count_slides(refused)) else ""
    examples = "; ".join(f"{refusal.file}: {refusal.reason}" for refusal in refused[:3])
    return LabError(
        f"{source}: expected at least one usable image, all {len(refused)} files are refused{slides}. {examples} "
        f"All reasons are in {kept}."
    )


def _replace_dataset(
    folder: Path,
    card: LabMetadata,
    rows: tuple[ManifestRow, ...],
    dataset: LabDataset | None,
    images: dict[str, CheckedImage],
) -> None:
    """Write the whole dataset anew beside the old one, and let it take the old one's place."""
    new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    kept = {path for row in dataset.rows for path in (row.image, row.mask)} if dataset else set()

    def write(row: ManifestRow) -> None:
        for path, write_anew in ((row.image, _write_image), (row.mask, _write_mask)):
            if path is not None and path in kept:
                link_or_copy(folder / path, new / path)
            elif path is not None:
                write_anew(images[row.image], new / path)

    try:
        for part in ("images", "masks") if card.labelled else ("images",):
            (new / part).mkdir(parents=True)
        with ThreadPoolExecutor(_WORKERS) as pool:
            list(pool.map(write, rows))
        write_manifest(new, rows)
        write_lab_metadata(new, card)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _write_image(image: CheckedImage, target: Path) -> None:
    """Write an image as PNG, and see that it is the one that was checked."""
    if image.plain:
        shutil.copyfile(image.image, target)
        pixels = read_image(target)
    else:
        pixels = read_image(image.image)
        write_png(target, pixels)
    if image_digest(pixels) != image.sha256:
        raise LabError(
            f"{image.image}: expected the same image as a moment ago, got another. "
            "Wait until the delivery is complete, then prepare it again."
        )


def _write_mask(image: CheckedImage, target: Path) -> None:
    assert image.mask is not None
    write_png(target, read_mask(image.mask))


class DatasetUpdate:
    """A delivery laid beside the dataset: what is new, what is there already, what contradicts it."""

    def __init__(self, card: LabMetadata, dataset: LabDataset | None, facts: dict[str, ImageMetadata]) -> None:
        self.card = card
        self.dataset = dataset
        self.facts = facts
        self.rows: dict[str, ManifestRow] = {}  # by image key
        for row in dataset.rows if dataset else ():
            key = image_key(image_name(row.image))
            said = facts.get(key)
            self.rows[key] = replace(row, mpp=(said and said.mpp) or row.mpp or card.mpp)
        self.by_content = {row.sha256: row for row in self.rows.values()}
        self.new: dict[str, CheckedImage] = {}  # what is to be written, by path in the dataset
        self.taken = self.added = 0
        self.refused: list[RejectedFile] = []

    def take(self, image: CheckedImage) -> None:
        """Take an image and its mask over, or refuse both."""
        key = image_key(image.name)
        row = self.rows.get(key)
        if reason := self._contradiction(image, row):
            self._refuse(image, reason)
            return
        self.taken += 1
        if row is None:
            said = self.facts.get(key, ImageMetadata(image.name, None, None))
            row = ManifestRow(
                image=f"images/{image.name}.png",
                mask=f"masks/{image.name}.png" if image.mask else None,
                group=said.group or image.name,
                split="train",
                width=image.width,
                height=image.height,
                mpp=said.mpp or self.card.mpp,
                sha256=image.sha256,
            )
            self.new[row.image] = image
            self.added += 1
        elif row.mask is None and image.mask is not None:
            row = replace(row, mask=f"masks/{Path(row.image).name}")
            self.new[row.image] = image
        self.rows[key] = self.by_content[image.sha256] = replace(row, mpp=row.mpp or image.mpp)

    def _contradiction(self, image: CheckedImage, row: ManifestRow | None) -> str | None:
        """Say what in the dataset an image or its mask contradicts, if anything."""
        if row is None:
            same = self.by_content.get(image.sha256)
            return None if same is None else f"expected new images, got the content of {same.image}. Leave it out."
        if row.sha256 != image.sha256:
            return f"expected a new name, got that of {row.image}, which has other content. Rename the new image."
        if self.dataset is None or row.mask is None or image.mask is None:
            return None
        if not np.array_equal(read_mask(self.dataset.mask_path(row)), read_mask(image.mask)):
            return (
                f"expected the mask that the dataset has for {row.image}, got another. Deliver corrected masks under a "
                "new lab name, so that earlier results stay comparable."
            )
        return None

    def _refuse(self, image: CheckedImage, reason: str) -> None:
        self.refused.append(RejectedFile(f"images/{image.image.name}", reason))
        if image.mask is not None:
            self.refused.append(
                RejectedFile(f"masks/{image.mask.name}", f"its image {image.image.name} is refused: {reason}")
            )


def merge_metadata(old: LabMetadata, new: LabMetadata) -> LabMetadata:
    """Join the card of a later delivery to the dataset's; what it does not say stays."""
    for field in ("stain", "classes", "mpp"):
        before, now = getattr(old, field), getattr(new, field)
        if None not in (before, now) and before != now:
            raise LabError(
                f"lab {old.lab}: expected {field} {before} as in the dataset, got {now}. Correct lab.yaml, or give the "
                f"delivery another lab name{'; images.csv can state mpp for each image' if field == 'mpp' else ''}."
            )
    said = {field: value for field, value in new if field in new.model_fields_set and value is not None}
    return old.model_copy(update=said)


def check_image_table(
    source: Path, facts: dict[str, ImageMetadata], rows: dict[str, ManifestRow], refused: tuple[RejectedFile, ...]
) -> None:
    """See that each line of ``images.csv`` means an image, and moves none to another group."""
    known = rows.keys() | {image_key(image_name(refusal.file)) for refusal in refused}
    if unknown := [said.file for key, said in facts.items() if key not in known]:
        raise LabError(
            f"{source / IMAGE_TABLE_FILE}: expected files in images/, got {', '.join(unknown[:5])}. "
            "Correct the names or remove the lines."
        )
    for key, said in facts.items():
        if key in rows and said.group is not None and said.group != rows[key].group:
            raise LabError(
                f"{source / IMAGE_TABLE_FILE}: expected group {rows[key].group!r} for {said.file} as in the dataset, "
                f"got {said.group!r}. Its split is settled: remove the line, or give the delivery another lab name."
            )
