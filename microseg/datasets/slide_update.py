"""Adding the slides of an incoming dataset to the lab's dataset: their fields, and the labels of these."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from microseg.annotations.classes import IGNORE
from microseg.annotations.index_masks import read_mask
from microseg.annotations.instance_masks import INSTANCES, read_instances, write_instances
from microseg.annotations.labels import LabelRegion, Labels
from microseg.datasets.corrections import merge_labels, renumber
from microseg.datasets.dataset import LabDataset
from microseg.datasets.fields import Box, Field, FieldRecipe, labelled_fields
from microseg.datasets.image_table import ImageMetadata, image_key, image_name
from microseg.datasets.lab import LabMetadata
from microseg.datasets.listing import IncomingFiles
from microseg.datasets.manifest import ManifestRow
from microseg.datasets.slide_checks import CheckedSlide, check_slide, labels_digest, read_labels, regions_on_glass
from microseg.datasets.slides import SLIDES, DatasetSlide, SlideTable, store_slide
from microseg.errors import MicrosegError
from microseg.slides.identity import KnownHashes, source_state
from microseg.slides.images import write_png
from microseg.slides.limited import open_slide
from microseg.slides.parts import is_address_file
from microseg.slides.pixel_size import StatedMpp
from microseg.slides.tissue import find_tissue

__all__ = ["SlideOptions", "SlideUpdate"]


@dataclass(frozen=True)
class SlideOptions:
    """How slides are ingested.

    Attributes:
        recipe: How fields without labels are chosen.
        reference: Whether slides stay where they are; else they are linked or copied into the dataset.
    """

    recipe: FieldRecipe = field(default_factory=FieldRecipe)
    reference: bool = False


class SlideUpdate:
    """The slides of a dataset after those of an incoming one are added, one by one.

    Args:
        metadata: Of the lab.
        dataset: The lab's dataset; None where there is none yet.
        table: Contents of ``images.csv``.
        staged: Folder in which new files are written.
        hashes: Hashes of files that are known.
        options: How slides are ingested.

    Attributes:
        rows: Rows of the fields, by `image_key` of their names.
        slides: Records by `image_key` of the slides' names.
        masks: Names of the rows whose staged masks are new.
        notes: What of the annotations is not used, and what was measured of slides.
        accepted: Number of slides accepted.
        added: Number of slides that are new.
        relabelled: Number of earlier slides that got labels, or corrections of them.
    """

    def __init__(
        self,
        metadata: LabMetadata,
        dataset: LabDataset | None,
        table: Mapping[str, ImageMetadata],
        staged: Path,
        hashes: KnownHashes,
        options: SlideOptions,
    ) -> None:
        self._metadata, self._dataset, self._table, self._staged = metadata, dataset, table, staged
        self._hashes, self._options = hashes, options
        before = dataset.slides if dataset is not None else None
        self.recipe = before.recipe if before is not None else options.recipe
        self.slides = {image_key(image_name(slide.file)): slide for slide in (before.slides if before else ())}
        rows = dataset.rows if dataset is not None else ()
        self.rows = {image_key(row.name): row for row in rows if row.slide is not None}
        self._images = {image_key(row.name) for row in rows if row.slide is None}
        self.masks: set[str] = set()
        self.notes: list[str] = []
        self.accepted = self.added = self.relabelled = 0

    @property
    def table(self) -> SlideTable | None:
        """Contents of the dataset's ``slides.json``; None where there are no slides."""
        slides = tuple(slide for _, slide in sorted(self.slides.items()))
        return SlideTable(self.recipe, slides) if slides else None

    def add(self, files: IncomingFiles, path: Path, annotation: Path | None) -> None:
        """Check a slide and its annotation, and add them; what cannot be used is rejected, both together."""
        try:
            self._add(path, annotation)
        except (MicrosegError, OSError) as error:
            reason = str(error).removeprefix(f"{path}: ")
            if annotation is not None and reason.startswith(f"{annotation}: "):
                reason = reason.removeprefix(f"{annotation}: ")
                files.reject(annotation, reason)
                files.reject(path, f"its annotation {annotation.name} is rejected: {reason}", path)
            else:
                files.reject(path, reason, path)
                if annotation is not None:
                    files.reject(annotation, f"its slide {path.name} is rejected: {reason}")

    def _add(self, path: Path, annotation: Path | None) -> None:
        key, digest = image_key(image_name(path)), self._hashes.sha256(path)
        stated, known = self._table.get(key), self.slides.get(key)
        if key in self._images:
            raise MicrosegError("expected a new name, got that of an image of the dataset. Rename the slide.")
        if known is not None and known.sha256 != digest:
            raise MicrosegError(
                f"expected a new name, got that of {known.file}, which has other content. Rename the new slide."
            )
        same = next((it for it in self.slides.values() if it.sha256 == digest), None)
        if known is None and same is not None:
            raise MicrosegError(f"expected new slides, got the content of {same.file}. Leave it out.")
        meaning = None if annotation is None else labels_digest(annotation, self._metadata.label_classes)
        if known is not None and meaning in (None, known.labels):
            self.accepted += 1
            return
        checked = None
        if known is None:
            checked = check_slide(path, digest, self.recipe, self._stated_mpp(stated), self._metadata.read_options)
            record, group = checked.record, (stated and stated.group) or image_name(path)
        else:
            record, group = known, self._group(known.file)
        record = replace(record, labels=meaning or record.labels)
        labels = None
        if annotation is not None:
            try:
                labels = read_labels(annotation, record, self._metadata.label_classes)
            except MicrosegError as error:
                raise MicrosegError(f"{annotation}: {str(error).removeprefix(f'{annotation}: ')}") from error
            self.notes += [f"{annotation.name}: {note}" for note in labels.notes]
            self._check_places(path, annotation, labels, checked)
        changed = 0 if labels is None else self._label(record, labels, group)
        if labels is not None and not changed and known is None:
            raise MicrosegError(f"{annotation}: expected labels, got none: nothing on the slide is annotated.")
        if checked is not None:
            record = self._store(path, record)
            self._add_fields(checked, record, group)
            self.added += 1
            if checked.found.pen or checked.found.out_of_focus:
                self.notes.append(
                    f"{path.name}: {checked.found.pen:.1%} of its tissue is under marker pen, "
                    f"{checked.found.out_of_focus:.0%} of the places looked at are out of focus; they are left out"
                )
        elif changed:
            self.relabelled += 1
        self.slides[key] = record
        self.accepted += 1

    def _check_places(self, path: Path, annotation: Path, labels: Labels, checked: CheckedSlide | None) -> None:
        """Refuse outlines of which half or more are on glass, and note where some are."""
        if checked is not None:
            tissue = checked.found.map
        else:
            with open_slide(path, self._metadata.read_options) as slide:
                tissue = find_tissue(slide)
        drawn, glass = regions_on_glass(labels, tissue)
        if glass and 2 * glass >= drawn:
            raise MicrosegError(
                f"{annotation}: expected outlines on tissue, got {glass} of {drawn} annotated regions that show bare "
                "glass: they are of another slide, or at another magnification. Export those of this slide at full "
                "resolution."
            )
        if glass:
            self.notes.append(
                f"{annotation.name}: {glass} of {drawn} annotated regions with outlines show bare glass only; check "
                "that they are in their place"
            )

    def _stated_mpp(self, stated: ImageMetadata | None) -> StatedMpp | None:
        if stated is not None and stated.mpp is not None:
            return StatedMpp(stated.mpp, "images.csv", overrides=True)
        return None if self._metadata.mpp is None else StatedMpp(self._metadata.mpp, "lab.yaml")

    def _group(self, file: str) -> str:
        return next(row.group for row in self.rows.values() if row.slide == file)

    def _store(self, path: Path, record: DatasetSlide) -> DatasetSlide:
        """Put the slide into the dataset, or record where it stays."""
        if self._options.reference:
            real = path.resolve()
            return replace(record, location=str(real), state=source_state(real))
        store_slide(path, self._staged / SLIDES / record.file)
        return replace(record, state=record.sha256) if is_address_file(path) else record

    def _add_fields(self, slide: CheckedSlide, record: DatasetSlide, group: str) -> None:
        for each in slide.found.fields:
            row = _row(record, each, group)
            self.rows.setdefault(image_key(row.name), row)

    # ---- labels

    def _label(self, record: DatasetSlide, labels: Labels, group: str) -> int:
        """Write the masks of the fields with labels; returns how many are new or change."""
        earlier = [row for row in self.rows.values() if row.slide == record.file and row.mask is not None]
        regions = labels.known_boxes()
        changed = sum(self._correct(row, earlier, labels) for row in earlier if _touches(row.box, regions))
        side = self.recipe.side(record.mpp)
        for each, part in labelled_fields(regions, record.width, record.height, side):
            found = _read(labels, each.box)
            known = np.zeros(found.classes.shape, np.bool_)
            known[_slices(part, each.box)] = True
            for row in earlier:  # they have these labels now
                known[_slices(row.box, each.box)] = False
            found.classes[~known] = IGNORE
            if (found.classes == IGNORE).all():
                continue
            row = replace(_row(record, each, group), mask="")
            row = replace(row, mask=f"masks/{row.name}.png")
            self._stage(row, found)
            changed += 1
        return changed

    def _correct(self, row: ManifestRow, earlier: list[ManifestRow], labels: Labels) -> bool:
        """Correct the labels of a field that has some; what another field knows, or gets to know, is left to that."""
        assert self._dataset is not None
        before = self._read_dataset(row)
        found = _read(labels, row.box)
        place = earlier.index(row)
        for number, other in enumerate(earlier):
            if number != place and _touches(row.box, [other.box]):
                theirs = np.zeros(found.classes.shape, np.bool_)
                theirs[_slices(other.box, row.box)] = number < place or (
                    self._read_dataset(other).classes[_slices(row.box, other.box)] != IGNORE
                )
                found.classes[theirs & (before.classes == IGNORE)] = IGNORE
        merged = merge_labels(before, found)
        if merged is None:
            return False
        self._stage(row, merged)
        return True

    def _read_dataset(self, row: ManifestRow) -> LabelRegion:
        assert self._dataset is not None
        instances = self._dataset.instances_path(row)
        return LabelRegion(
            read_mask(self._dataset.mask_path(row)), None if instances is None else read_instances(instances)
        )

    def _stage(self, row: ManifestRow, labels: LabelRegion) -> None:
        write_png(self._staged / "masks" / f"{row.name}.png", labels.classes)
        if labels.instances is not None:
            numbers = np.where(labels.classes == IGNORE, 0, labels.instances)
            write_instances(self._staged / INSTANCES / f"{row.name}.png", renumber(numbers))
        self.masks.add(row.name)
        self.rows[image_key(row.name)] = row


def _row(slide: DatasetSlide, each: Field, group: str) -> ManifestRow:
    left, top, right, bottom = each.box
    return ManifestRow(
        image=f"{SLIDES}/{slide.file}",
        mask=None,
        group=group,
        split="train",
        width=right - left,
        height=bottom - top,
        mpp=slide.mpp,
        sha256=slide.sha256,
        x=left,
        y=top,
        cluster=each.cluster,
    )


def _read(labels: Labels, box: Box) -> LabelRegion:
    """Labels of a field, in arrays of its own."""
    left, top, right, bottom = box
    classes, instances = labels.read(left, top, right - left, bottom - top)
    return LabelRegion(np.array(classes), None if instances is None else np.array(instances))


def _touches(box: Box, others: list[Box]) -> bool:
    return any(box[0] < it[2] and it[0] < box[2] and box[1] < it[3] and it[1] < box[3] for it in others)


def _slices(part: Box, box: Box) -> tuple[slice, slice]:
    """A part of a slide in the array of a field; empty where it is outside."""
    height, width = box[3] - box[1], box[2] - box[0]
    rows = slice(min(height, max(0, part[1] - box[1])), min(height, max(0, part[3] - box[1])))
    columns = slice(min(width, max(0, part[0] - box[0])), min(width, max(0, part[2] - box[0])))
    return rows, columns
