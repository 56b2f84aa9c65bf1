"""Synthetic labs: generated images with ground truth, for tests, the demo and benchmarks.

A profile states what is generated: sections of glandular mucosa (`LabProfile`) or single cells
(`microseg.synthetic.cells.CellProfile`).
"""

import csv
import os
import tempfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from microseg.datasets.image_table import IMAGE_TABLE_FILE
from microseg.datasets.lab import LabMetadata, write_lab_metadata
from microseg.errors import LabError
from microseg.slides.images import write_png
from microseg.synthetic.glands import CLASSES, LAB_A, LAB_B, LabProfile, StainAmounts

__all__ = [
    "CLASSES",
    "LAB_A",
    "LAB_B",
    "LabProfile",
    "MixedLab",
    "Profile",
    "StainAmounts",
    "generate_image",
    "generate_lab",
]

_IMAGES_PER_SLIDE = 2

Pair = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


class Profile(Protocol):
    """What a lab is generated from: `LabProfile`, `MixedLab`, or `microseg.synthetic.cells.CellProfile`."""

    @property
    def name(self) -> str:
        """Name of the lab; also the prefix of its file names."""

    @property
    def stain(self) -> str:
        """The stain, as stated in ``lab.yaml``."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, background first."""

    @property
    def preparation(self) -> str:
        """Tissue and preparation, as stated in ``lab.yaml``."""

    def vary(self, rng: np.random.Generator) -> "Profile":
        """Profile of one slide of the lab."""

    def draw(self, size: int, mpp: float, rng: np.random.Generator) -> Pair:
        """Draw one image and its mask; see `generate_image`."""


@dataclass(frozen=True)
class MixedLab:
    """A lab whose slides are of several stains or scanners.

    Args:
        name: Name of the lab; also the prefix of its file names.
        parts: Profiles of its slides; each slide is of a random one.
    """

    name: str
    parts: tuple[Profile, ...]

    @property
    def stain(self) -> str:
        """The stains, as stated in ``lab.yaml``."""
        return ", ".join(dict.fromkeys(part.stain for part in self.parts))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, background first."""
        return self.parts[0].classes

    @property
    def preparation(self) -> str:
        """Tissue and preparation, as stated in ``lab.yaml``."""
        return self.parts[0].preparation

    def vary(self, rng: np.random.Generator) -> Profile:
        """Profile of one slide of the lab."""
        return self.parts[rng.integers(len(self.parts))].vary(rng)

    def draw(self, size: int, mpp: float, rng: np.random.Generator) -> Pair:
        """Draw one image of a random slide, and its mask."""
        return self.vary(rng).draw(size, mpp, rng)


def generate_image(
    profile: Profile, size: int, mpp: float, seed: int | Sequence[int]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Generate one image, as stored by the lab's scanner, and its ground-truth mask.

    Args:
        profile: The lab, without variation from slide to slide.
        size: Side of the image, in pixels.
        mpp: Microns per pixel.
        seed: The same seed gives the same image, bit for bit.

    Shape:
        image (size, size, 3), mask (size, size).

    Returns:
        The RGB image, and the class index of each pixel (see ``Profile.classes``): a gland is epithelium and lumen.

    Reference:
        Ruifrok & Johnston 2001 for the stain vectors; light is absorbed by the Beer-Lambert law.
    """
    return profile.draw(size, mpp, np.random.default_rng(seed))


def generate_lab(
    folder: Path | str,
    profile: Profile,
    *,
    images: int,
    size: int = 256,
    mpp: float = 1.0,
    state_mpp: bool = True,
    labelled: bool,
    test_images: int = 0,
    test_profile: Profile | None = None,
    seed: int,
) -> Path:
    """Write an incoming dataset: images, ``lab.yaml``, ``images.csv`` and, where labelled, masks.

    Two images each are of one slide (``group``), with its stain intensity, scanner state and architecture. Test images
    are of other slides and always have masks. The folder is created atomically.

    Args:
        folder: The folder to create; it must not exist, or be empty.
        profile: The lab; its name is that in ``lab.yaml`` and the prefix of the file names.
        images: Number of images in ``images/``.
        size: Side of each image, in pixels.
        mpp: Microns per pixel.
        state_mpp: Whether ``lab.yaml`` and ``images.csv`` state the microns per pixel.
        labelled: Whether ``masks/`` is written.
        test_images: Number of images in ``test/images/``, with ``test/masks/``.
        test_profile: What they show, such as a class that ``images/`` lack; the same as these where None.
        seed: The same seed and profile give the same files, bit for bit. Fewer images are the first ones of more.

    Returns:
        The folder.

    Raises:
        LabError: The folder is not empty.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LabError(f"expected a new or empty folder, got {folder}, which has files; choose another or empty it")
    metadata = LabMetadata(
        lab=profile.name,
        stain=profile.stain,
        classes=profile.classes,
        mpp=mpp if state_mpp else None,
        tissue=profile.preparation,
        labelled=labelled,
    )
    lab_seed = [seed, zlib.crc32(profile.name.encode())]  # labs of one seed have different sections
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        lab = Path(temporary) / folder.name
        slides = _write_images(lab, profile.name, profile, images, size, mpp, labelled, [*lab_seed, 0])
        shown = test_profile or profile
        if test_images:
            _write_images(lab / "test", f"{profile.name}_test", shown, test_images, size, mpp, True, [*lab_seed, 1])
        write_lab_metadata(lab, metadata)
        with (lab / IMAGE_TABLE_FILE).open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("file", "group", "mpp"))
            table.writerows((name, slide, f"{mpp:g}" if state_mpp else "") for name, slide in slides.items())
        lab.replace(folder)
    return folder


def _write_images(
    folder: Path, prefix: str, profile: Profile, count: int, size: int, mpp: float, masks: bool, seed: list[int]
) -> dict[str, str]:
    """Write ``images/`` and, if requested, ``masks/``; returns the slide of each file."""
    (folder / "images").mkdir(parents=True)
    if masks:
        (folder / "masks").mkdir()

    def write(number: int) -> tuple[str, str]:
        slide = number // _IMAGES_PER_SLIDE
        slide_profile = profile.vary(np.random.default_rng([*seed, 0, slide]))
        image, mask = generate_image(slide_profile, size, mpp, [*seed, 1, number])
        name = f"{prefix}_{number:03d}.png"
        write_png(folder / "images" / name, image)
        if masks:
            write_png(folder / "masks" / name, mask)
        return name, f"{prefix}_slide_{slide:03d}"

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy and SciPy release the GIL
        return dict(pool.map(write, range(count)))
