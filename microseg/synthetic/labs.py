"""Synthetic labs: generated sections of glandular mucosa with ground truth, for tests and the demo.

Two labs share the anatomy and differ in stain, scanner and preparation, so that a segmenter trained on one loses
accuracy on the other for the same reasons as with real labs.
"""

import csv
import os
import tempfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from microseg.datasets.lab import IMAGE_TABLE_FILE, LabMetadata, write_lab_metadata
from microseg.datasets.stain import transmitted_light
from microseg.errors import LabError
from microseg.slides.images import write_png
from microseg.synthetic.scanner import Scanner, scan
from microseg.synthetic.tissue import Section, Tissue, generate_section

__all__ = ["CLASSES", "LAB_A", "LAB_B", "LabProfile", "StainAmounts", "generate_image", "generate_lab"]

CLASSES = ("background", "gland")

_IMAGES_PER_SLIDE = 2

Amount = tuple[float, float, float]
"""Hematoxylin, eosin and DAB, in optical density along each stain's unit vector."""


@dataclass(frozen=True)
class StainAmounts:
    """Amount of each stain in each compartment: (hematoxylin, eosin, DAB), in optical density.

    The DAB of ``cytoplasm`` and ``epithelial_nucleus`` is that of a fully positive gland.
    """

    epithelial_nucleus: Amount
    cytoplasm: Amount
    mucus: Amount
    secretion: Amount
    stroma: Amount
    stromal_nucleus: Amount
    muscle: Amount
    red_cell: Amount


@dataclass(frozen=True)
class LabProfile:
    """Properties of a synthetic lab. Derive another one with ``dataclasses.replace``.

    Args:
        name: Name of the lab; also the prefix of its file names.
        stain: The stain, as stated in ``lab.yaml``.
        amounts: Amounts of the stains.
        scanner: The scanner.
        tissue: Architecture after this lab's preparation.
        positive: Fraction of glands that are DAB-positive.
        slide_variation: Spread from slide to slide, as a fraction (standard deviation of the logarithm).
    """

    name: str
    stain: str
    amounts: StainAmounts
    scanner: Scanner = field(default_factory=Scanner)
    tissue: Tissue = field(default_factory=Tissue)
    positive: float = 0.5
    slide_variation: float = 0.14


LAB_A = LabProfile(
    name="lab_a",
    stain="H&E",
    amounts=StainAmounts(
        epithelial_nucleus=(0.95, 0.25, 0.0),
        cytoplasm=(0.20, 0.25, 0.0),
        mucus=(0.10, 0.06, 0.0),
        secretion=(0.06, 0.12, 0.0),
        stroma=(0.10, 0.28, 0.0),
        stromal_nucleus=(0.90, 0.22, 0.0),
        muscle=(0.12, 0.42, 0.0),
        red_cell=(0.05, 0.70, 0.0),
    ),
    scanner=Scanner(white=(0.95, 0.94, 0.95), overlap=0.25, gamma=1.0, blur=0.55, photons=3000.0, jpeg_quality=90),
)

LAB_B = LabProfile(  # the stroma is stained by the marker too, as is common
    name="lab_b",
    stain="DAB-H",
    amounts=StainAmounts(
        epithelial_nucleus=(0.34, 0.0, 0.18),
        cytoplasm=(0.14, 0.0, 0.28),
        mucus=(0.08, 0.0, 0.04),
        secretion=(0.03, 0.0, 0.12),
        stroma=(0.16, 0.0, 0.28),
        stromal_nucleus=(0.50, 0.0, 0.05),
        muscle=(0.20, 0.0, 0.34),
        red_cell=(0.08, 0.0, 0.30),
    ),
    positive=0.7,
    scanner=Scanner(white=(0.93, 0.92, 0.86), overlap=0.08, gamma=1.1, blur=0.9, photons=1500.0, jpeg_quality=70),
    tissue=Tissue(gland_diameter=84.0, nucleus_spacing=6.0, nucleus_size=(8.6, 4.8), stromal_nuclei=2200.0),
)


def generate_image(
    profile: LabProfile, size: int, mpp: float, seed: int | Sequence[int]
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
        The RGB image, and the class index of each pixel (see ``CLASSES``): a gland is epithelium and lumen.

    Reference:
        Ruifrok & Johnston 2001 for the stain vectors; light is absorbed by the Beer-Lambert law.
    """
    rng = np.random.default_rng(seed)
    oversampling = 1 if mpp <= 0.5 else 2  # samples per pixel side; half a micron resolves all structures
    shape = (size * oversampling, size * oversampling)
    section = generate_section(profile.tissue, shape, mpp / oversampling, rng)
    light = transmitted_light(_stain(section, profile, rng))  # (H, W, 3)
    image = scan(light, profile.scanner, mpp=mpp, oversampling=oversampling, rng=rng)
    inside = (section.gland > 0).reshape(size, oversampling, size, oversampling).mean(axis=(1, 3))
    return image, (inside >= 0.5).astype(np.uint8)


def generate_lab(
    folder: Path | str,
    profile: LabProfile,
    *,
    images: int,
    size: int = 256,
    mpp: float = 1.0,
    labelled: bool,
    test_images: int = 0,
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
        labelled: Whether ``masks/`` is written.
        test_images: Number of images in ``test/images/``, with ``test/masks/``.
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
        lab=profile.name, stain=profile.stain, classes=CLASSES, mpp=mpp, tissue="colon (synthetic)", labelled=labelled
    )
    lab_seed = [seed, zlib.crc32(profile.name.encode())]  # labs of one seed have different sections
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        lab = Path(temporary) / folder.name
        slides = _write_images(lab, profile.name, profile, images, size, mpp, labelled, [*lab_seed, 0])
        if test_images:
            _write_images(lab / "test", f"{profile.name}_test", profile, test_images, size, mpp, True, [*lab_seed, 1])
        write_lab_metadata(lab, metadata)
        with (lab / IMAGE_TABLE_FILE).open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("file", "group", "mpp"))
            table.writerows((name, slide, f"{mpp:g}") for name, slide in slides.items())
        lab.replace(folder)
    return folder


def _write_images(
    folder: Path, prefix: str, profile: LabProfile, count: int, size: int, mpp: float, masks: bool, seed: list[int]
) -> dict[str, str]:
    """Write ``images/`` and, if requested, ``masks/``; returns the slide of each file."""
    (folder / "images").mkdir(parents=True)
    if masks:
        (folder / "masks").mkdir()

    def write(number: int) -> tuple[str, str]:
        slide = number // _IMAGES_PER_SLIDE
        slide_profile = _vary(profile, np.random.default_rng([*seed, 0, slide]))
        image, mask = generate_image(slide_profile, size, mpp, [*seed, 1, number])
        name = f"{prefix}_{number:03d}.png"
        write_png(folder / "images" / name, image)
        if masks:
            write_png(folder / "masks" / name, mask)
        return name, f"{prefix}_slide_{slide:03d}"

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy and SciPy release the GIL
        return dict(pool.map(write, range(count)))


def _vary(profile: LabProfile, rng: np.random.Generator) -> LabProfile:
    """Profile of one slide: the amount of each stain, the scanner state and the architecture vary."""
    spread = profile.slide_variation
    red, green, blue = 1.0 + rng.normal(0.0, 0.15 * spread, 3)
    strength = np.exp(rng.normal(0.0, spread, 3) + rng.normal(0.0, 0.6 * spread))  # of each stain; section thickness
    amounts: dict[str, Any] = {
        name: tuple((amount * strength).tolist()) for name, amount in asdict(profile.amounts).items()
    }
    size, height, nuclei, contour, gamma, blur = np.exp(rng.normal(0.0, spread, 6))
    scanner, tissue = profile.scanner, profile.tissue
    return replace(
        profile,
        amounts=StainAmounts(**amounts),
        scanner=replace(
            scanner,
            white=(scanner.white[0] * red, scanner.white[1] * green, scanner.white[2] * blue),
            gamma=scanner.gamma * gamma**0.5,
            blur=scanner.blur * blur,
        ),
        tissue=replace(
            tissue,
            gland_diameter=tissue.gland_diameter * size,
            epithelium_height=tissue.epithelium_height * height,
            stromal_nuclei=tissue.stromal_nuclei * nuclei**2,
            irregularity=tissue.irregularity * contour**2,
            goblet_fraction=tissue.goblet_fraction * rng.uniform(0.2, 1.6),
            branching=tissue.branching * rng.uniform(0.3, 1.6),
        ),
    )


def _stain(section: Section, profile: LabProfile, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Amounts of the three stains at each sample (H, W, 3): compartments composited in order, with texture."""
    amounts = profile.amounts
    glands = int(section.gland.max()) + 1
    positivity = np.where(rng.random(glands) < profile.positive, rng.beta(3.0, 1.5, glands), 0.15 * rng.random(glands))
    marker = positivity.astype(np.float32)[section.gland] * (1.0 + 0.3 * section.coarse + 0.12 * section.medium)

    texture = 1.0 + 0.06 * section.fine + 0.07 * section.medium + 0.06 * section.coarse
    stroma = np.maximum(1.0 + 0.24 * section.fibers + 0.12 * section.medium + 0.26 * section.coarse, 0.1)
    plain, marked = texture[..., None], np.stack([texture, texture, texture * np.maximum(marker, 0.0)], axis=-1)

    stained: npt.NDArray[np.float32] = np.asarray(amounts.stroma, np.float32) * stroma[..., None]
    for amount, cover, grain in (
        (amounts.muscle, section.wall, plain),
        (amounts.cytoplasm, section.epithelium, marked),
        (amounts.mucus, section.goblet, plain),
        ((0.0, 0.0, 0.0), np.maximum(section.lumen, section.gap), plain),  # clear
        (amounts.secretion, section.secretion, plain),
        (amounts.red_cell, section.red_cells, plain),
        (amounts.stromal_nucleus, section.stromal_nuclei, plain),
        (amounts.epithelial_nucleus, section.epithelial_nuclei, marked),
    ):
        stained += cover[..., None] * (np.asarray(amount, np.float32) * grain - stained)
    return stained
