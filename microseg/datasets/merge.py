"""A delivery laid beside the dataset: what is new, what is there already, what contradicts it."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from microseg.annotations.index_masks import read_mask
from microseg.datasets.checks import RejectedFile
from microseg.datasets.dataset import Lab
from microseg.datasets.image_table import IMAGE_TABLE_FILE, ImageMetadata
from microseg.datasets.lab import LabMetadata
from microseg.datasets.manifest import ManifestRow
from microseg.datasets.names import image_key, image_name
from microseg.datasets.pair import CheckedImage
from microseg.errors import LabError

__all__ = ["DatasetUpdate", "check_image_table", "merge_metadata"]


class DatasetUpdate:
    """A delivery laid beside the dataset: what is new, what is there already, what contradicts it."""

    def __init__(self, card: LabMetadata, dataset: Lab | None, facts: dict[str, ImageMetadata]) -> None:
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
