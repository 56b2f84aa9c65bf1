"""The folder of a lab's dataset: it has one writer at a time, and is replaced as a whole."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from microseg.annotations.instance_masks import INSTANCES
from microseg.datasets.dataset import LabDataset
from microseg.datasets.lab import check_lab_name, write_lab_metadata
from microseg.datasets.manifest import write_manifest
from microseg.datasets.slides import SLIDES, store_slide, write_slides
from microseg.files import link_or_copy
from microseg.locks import lock_file

__all__ = ["lab_lock", "replace_dataset", "replace_folder"]


@contextmanager
def lab_lock(labs: Path, lab: str) -> Iterator[Path]:
    """Lock a lab's dataset for one writer, after repairing what a killed process may have left.

    Args:
        labs: Folder of all labs' datasets; created when missing.
        lab: Name of the lab.

    Yields:
        Path at which the writer can build the new dataset, to rename it in the end; what is left there is removed.
    """
    with lock_file(labs / f".{check_lab_name(lab)}.lock"):
        folder = labs / lab
        new, old = folder.with_name(f".{lab}.new"), _old(folder)
        if old.exists() and not folder.exists():
            old.rename(folder)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
        try:
            yield new
        finally:
            shutil.rmtree(new, ignore_errors=True)


def replace_dataset(folder: Path, staged: Path, dataset: LabDataset, new: Mapping[str, str]) -> None:
    """Build a dataset of new files and those of the old one, and let it replace the old one.

    Args:
        folder: Folder of the dataset.
        staged: Folder of the new files, in that of `lab_lock`; it is removed.
        dataset: The new dataset.
        new: New files of the dataset, by their names in it, and their names in the staged folder.
    """
    building = staged.parent
    for part in ("images", "masks") if dataset.metadata.labelled else ("images",):
        (building / part).mkdir()
    files = [path for row in dataset.rows for path in (None if row.slide else row.image, row.mask) if path is not None]
    for path in files:
        if path in new:
            (staged / new[path]).replace(building / path)
        else:
            link_or_copy(folder / path, building / path)
    for row in dataset.rows:
        if row.mask is None:
            continue
        file = f"{INSTANCES}/{row.name}.png"
        found = staged / (new[row.mask].replace("masks", INSTANCES, 1) if row.mask in new else file)
        if row.mask not in new and not found.is_file():
            found = folder / file
        if found.is_file():
            (building / INSTANCES).mkdir(exist_ok=True)
            link_or_copy(found, building / file)
    for slide in dataset.slides.slides if dataset.slides else ():
        if slide.location is None:
            found = staged / SLIDES / slide.file
            store_slide(found if found.exists() else folder / SLIDES / slide.file, building / SLIDES / slide.file)
    shutil.rmtree(staged)
    if dataset.slides is not None:
        write_slides(building, dataset.slides)
    write_manifest(building, dataset.rows)
    write_lab_metadata(building, dataset.metadata)
    replace_folder(folder, building)


def replace_folder(folder: Path, new: Path) -> None:
    """Let a complete folder replace that of a dataset, which may be missing; `lab_lock` repairs what a crash leaves."""
    old = _old(folder)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")
