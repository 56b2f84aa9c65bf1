"""Adding the images of an incoming dataset to the lab's dataset."""

from dataclasses import replace
from pathlib import Path

from microseg.annotations.index_masks import read_mask
from microseg.annotations.instance_masks import INSTANCES, read_instances, write_instances
from microseg.annotations.labels import LabelRegion
from microseg.datasets.checks import CheckedImage
from microseg.datasets.corrections import merge_labels
from microseg.datasets.dataset import LabDataset
from microseg.datasets.image_table import ImageMetadata, image_key, image_name
from microseg.datasets.lab import LabMetadata
from microseg.datasets.manifest import ManifestRow
from microseg.errors import DataError
from microseg.slides.images import image_digest, write_png
from microseg.slides.pixel_size import StatedMpp, agreed_mpp, same_mpp

__all__ = ["ImageUpdate"]


class ImageUpdate:
    """The images of a dataset after accepted ones are added, one by one.

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
            if row.slide is not None:
                continue
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


def _correct(dataset: LabDataset, row: ManifestRow, staged: Path, file: str) -> bool:
    """Merge a staged mask with that of the dataset; returns whether anything changes."""
    before, after = dataset.instances_path(row), staged / INSTANCES / file
    earlier = LabelRegion(read_mask(dataset.mask_path(row)), None if before is None else read_instances(before))
    new = LabelRegion(read_mask(staged / "masks" / file), read_instances(after) if after.is_file() else None)
    merged = merge_labels(earlier, new)
    if merged is None:
        return False
    write_png(staged / "masks" / file, merged.classes)
    if merged.instances is not None and (before is not None or after.is_file()):
        write_instances(after, merged.instances)
    return True
