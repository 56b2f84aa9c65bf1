"""A lab's dataset: its folder, its card and its manifest, together."""

from dataclasses import dataclass
from pathlib import Path

from microseg.datasets.lab import LabMetadata, read_lab_metadata
from microseg.datasets.manifest import ManifestRow, Split, read_manifest
from microseg.errors import LabError

__all__ = ["Lab", "open_lab_dataset"]


@dataclass(frozen=True)
class Lab:
    """A lab's prepared dataset.

    Attributes:
        folder: The folder with ``lab.yaml``, ``manifest.csv``, ``images/`` and, where labelled, ``masks/``.
        card: What the lab states about its images.
        rows: One row an image.
    """

    folder: Path
    card: LabMetadata
    rows: tuple[ManifestRow, ...]

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

    def image_path(self, row: ManifestRow) -> Path:
        """Where a row's image lies."""
        return self.folder / row.image

    def mask_path(self, row: ManifestRow) -> Path:
        """Where a row's mask lies.

        Raises:
            LabError: The row has no mask.
        """
        if row.mask is None:
            raise LabError(f"{self.folder}: expected a mask for {row.image}, got an unlabelled image. Select labelled.")
        return self.folder / row.mask


def open_lab_dataset(folder: Path | str) -> Lab:
    """Open a lab's prepared dataset, checking that all its files are there.

    Args:
        folder: The dataset's folder, as `ingest_lab` or `DatasetStore.checkout` leaves it.

    Returns:
        The dataset.

    Raises:
        LabError: The folder, its card, its manifest, or a file named in the manifest is missing or wrong.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise LabError(
            f"{folder}: expected the folder of a lab's dataset, found none. Prepare the lab's dataset first."
        )
    card, rows = read_lab_metadata(folder), read_manifest(folder)
    if not rows:
        raise LabError(f"{folder}: expected images in the manifest, got none. Prepare the lab's dataset again.")
    named = [path for row in rows for path in (row.image, row.mask) if path is not None]
    missing = [path for path in named if not (folder / path).is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise LabError(
            f"{folder}: expected every file of the manifest, missing {', '.join(missing[:3])}{more}. "
            "Check the dataset out again, or move it away and prepare it anew."
        )
    return Lab(folder=folder, card=card, rows=rows)
