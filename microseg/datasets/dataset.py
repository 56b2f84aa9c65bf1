"""The dataset of one lab: its metadata, its manifest and its files.

A dataset is a folder with ``lab.yaml``, ``images/``, ``masks/`` where labelled, and ``manifest.csv``, which has one
line for each image. Slides are in ``slides/`` or stay where they are, and are recorded in ``slides.json``; the manifest
has a line for each field of a slide.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np

from microseg.annotations.instance_masks import INSTANCES
from microseg.datasets.fields import spread
from microseg.datasets.lab import LabMetadata, read_lab_metadata
from microseg.datasets.manifest import ManifestRow, Split, read_manifest
from microseg.datasets.slides import SLIDES, SLIDES_FILE, DatasetSlide, SlideTable, read_slides
from microseg.errors import DataError, LabError
from microseg.slides.region import ImageSource, SlideRegion

__all__ = ["LabDataset", "assign_splits", "open_lab_dataset", "with_splits"]


@dataclass(frozen=True)
class LabDataset:
    """The dataset of a lab.

    Attributes:
        folder: The folder with ``lab.yaml``, ``manifest.csv``, ``images/`` and, where labelled, ``masks/``.
        metadata: Contents of ``lab.yaml``.
        rows: One row for each image, and for each field of a slide.
        slides: Its slides; None where it has none.
    """

    folder: Path
    metadata: LabMetadata
    rows: tuple[ManifestRow, ...]
    slides: SlideTable | None = None

    def select(self, *, split: Split | None = None, labelled: bool | None = None) -> tuple[ManifestRow, ...]:
        """Choose rows.

        Args:
            split: Only this split; None for all.
            labelled: Only images with (True) or without (False) a mask; None for both.

        Returns:
            The rows, in the manifest's order.
        """
        return tuple(
            row
            for row in self.rows
            if (split is None or row.split == split) and (labelled is None or (row.mask is not None) == labelled)
        )

    def spread(self, limit: int | None = None) -> tuple[ManifestRow, ...]:
        """Rows in an order in which the first ones are spread over the lab.

        Where there are slides, over these and over the appearance in them; else evenly over the manifest.

        Args:
            limit: Number of rows, at most; None for all.
        """
        rows = self.rows
        if limit is not None and len(rows) <= limit:
            return rows
        if any(row.slide for row in rows):
            order = spread([(row.slide or row.name, row.cluster or 0) for row in rows], seed=0)
            return tuple(rows[index] for index in order[:limit])
        if limit is None:
            return rows
        return tuple(rows[int(index)] for index in np.linspace(0, len(rows) - 1, limit))

    def image(self, row: ManifestRow) -> ImageSource:
        """Image of a row: a file, or a region of a slide."""
        if row.slide is None or self.slides is None:
            return self.image_path(row)
        slide = self._slides_by_file[row.slide]
        return SlideRegion(slide.path(self.folder), row.box, slide.recorded, self.metadata.read_options)

    @cached_property
    def _slides_by_file(self) -> dict[str, DatasetSlide]:
        return {slide.file: slide for slide in self.slides.slides} if self.slides else {}

    def image_path(self, row: ManifestRow) -> Path:
        """Path of a row's image, or slide."""
        if row.slide is not None and row.slide in self._slides_by_file:
            return self._slides_by_file[row.slide].path(self.folder)
        return self.folder / row.image

    def mask_path(self, row: ManifestRow) -> Path:
        """Path of a row's mask.

        Raises:
            LabError: The row has no mask.
        """
        if row.mask is None:
            raise LabError(f"{self.folder}: expected a mask for {row.image}, got an unlabelled image. Select labelled.")
        return self.folder / row.mask

    def instances_path(self, row: ManifestRow) -> Path | None:
        """Path of the numbered objects of a row's image, ``instances/<name>.png``; None where there are none."""
        path = self.folder / INSTANCES / f"{row.name}.png"
        return path if path.is_file() else None


def open_lab_dataset(folder: Path | str) -> LabDataset:
    """Open the dataset of a lab and check that all its files are present.

    Args:
        folder: The dataset's folder, as written by `ingest_lab` or `DatasetStore.checkout`.

    Returns:
        The dataset.

    Raises:
        LabError: The folder, its metadata, its manifest, or a file named in the manifest is missing or invalid.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise LabError(f"{folder}: expected the dataset of a lab, found no folder. Ingest the lab first.")
    metadata, rows, slides = read_lab_metadata(folder), read_manifest(folder), read_slides(folder)
    if not rows:
        raise LabError(f"{folder}: expected images in the manifest, got none. Ingest the lab again.")
    named = [path for row in rows for path in (row.image if row.x is None else None, row.mask) if path is not None]
    kept = [f"{SLIDES}/{slide.file}" for slide in slides.slides if slide.location is None] if slides else []
    missing = [path for path in named if not (folder / path).is_file()]
    missing += [path for path in kept if not (folder / path).exists()]
    if unknown := {row.slide for row in rows if row.slide} - {
        slide.file for slide in (slides.slides if slides else ())
    }:
        missing.append(f"the record of {min(unknown)} in {SLIDES_FILE}")
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise LabError(
            f"{folder}: expected every file of the manifest, missing {', '.join(missing[:3])}{more}. "
            "Check the dataset out again, or move it away and ingest the lab again."
        )
    return LabDataset(folder=folder, metadata=metadata, rows=rows, slides=slides)


def with_splits(
    rows: Mapping[str, ManifestRow], dataset: LabDataset | None, *, val_fraction: float, test_fraction: float, seed: int
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


def assign_splits(
    groups: Iterable[str],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    existing: Mapping[str, Split] | None = None,
) -> dict[str, Split]:
    """Assign each group to a split by a hash of its name, so that groups added later do not move the earlier ones.

    The fractions hold on average. Where a split that should have a group is empty (train always, val from two groups
    on, test from three), one group is moved into it.

    Args:
        groups: Names of patients or slides.
        val_fraction: Fraction of the groups for validation, 0..1.
        test_fraction: Fraction of the groups for the test, 0..1.
        seed: Another seed gives another assignment.
        existing: Splits assigned earlier, which never change.

    Returns:
        The split of each group, those of ``existing`` included.

    Raises:
        DataError: The fractions are negative, or leave nothing for training.
    """
    if not (val_fraction >= 0 and test_fraction >= 0 and val_fraction + test_fraction < 1):
        raise DataError(
            f"expected val and test fractions of at least 0 that leave something for training, got {val_fraction} and "
            f"{test_fraction}. Lower them."
        )
    splits = dict(existing or {})
    new = sorted(set(groups) - splits.keys(), key=lambda group: (_position(seed, group), group))
    for group in new:
        position = _position(seed, group)
        in_test, in_val = position < test_fraction, position < test_fraction + val_fraction
        splits[group] = "test" if in_test else "val" if in_val else "train"

    needed: list[Split] = ["train"]
    if val_fraction > 0 and len(splits) >= 2:
        needed.append("val")
    if test_fraction > 0 and len(splits) >= 3:
        needed.append("test")
    for split in needed:
        sizes = Counter(splits.values())
        movable = [group for group in new if splits[group] not in needed or sizes[splits[group]] > 1]
        if not sizes[split] and movable:
            moved = max(movable, key=lambda group: (splits[group] not in needed, sizes[splits[group]]))
            splits[moved] = split
    return splits


def _position(seed: int, group: str) -> float:
    """Position of a group in 0..1, by the hash of the seed and its name."""
    return int.from_bytes(sha256(f"{seed}:{group}".encode()).digest()[:8]) / 2**64
