"""Profiles of labs of glandular mucosa: anatomy, stain and scanner.

Two labs share the anatomy and differ in stain, scanner and preparation, so that a segmenter trained on one loses
accuracy on the other for the same reasons as with real labs.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from microseg.datasets.stain import transmitted_light
from microseg.synthetic.artifacts import add_artifacts
from microseg.synthetic.scanner import Scanner, scan
from microseg.synthetic.tissue import Section, Tissue, generate_section

__all__ = ["CLASSES", "LAB_A", "LAB_B", "LabProfile", "StainAmounts"]

CLASSES = ("background", "gland")

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
        empty: Fraction of slides without any gland.
        artifacts: Fraction of images with an artifact of preparation or scanning.
    """

    name: str
    stain: str
    amounts: StainAmounts
    scanner: Scanner = field(default_factory=Scanner)
    tissue: Tissue = field(default_factory=Tissue)
    positive: float = 0.5
    slide_variation: float = 0.14
    empty: float = 0.0
    artifacts: float = 0.0

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, background first."""
        return CLASSES

    @property
    def preparation(self) -> str:
        """Tissue and preparation, as stated in ``lab.yaml``."""
        return "colon (synthetic)"

    def vary(self, rng: np.random.Generator) -> Self:
        """Profile of one slide: the amount of each stain, the scanner state and the architecture vary."""
        spread = self.slide_variation
        red, green, blue = 1.0 + rng.normal(0.0, 0.15 * spread, 3)
        strength = np.exp(
            rng.normal(0.0, spread, 3) + rng.normal(0.0, 0.6 * spread)
        )  # of each stain; section thickness
        amounts: dict[str, Any] = {
            name: tuple((amount * strength).tolist()) for name, amount in asdict(self.amounts).items()
        }
        size, height, nuclei, contour, gamma, blur = np.exp(rng.normal(0.0, spread, 6))
        scanner, tissue = self.scanner, self.tissue
        if self.empty and rng.random() < self.empty:
            tissue = replace(tissue, glands=0.0)
        return replace(
            self,
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

    def draw(
        self, size: int, mpp: float, rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Draw one image and its mask; see `generate_image`."""
        oversampling = 1 if mpp <= 0.5 else 2  # samples per pixel side; half a micron resolves all structures
        shape = (size * oversampling, size * oversampling)
        section = generate_section(self.tissue, shape, mpp / oversampling, rng)
        light = transmitted_light(_stain(section, self, rng))  # (H, W, 3)
        light = add_artifacts(light, self.artifacts, mpp / oversampling, rng)
        image = scan(light, self.scanner, mpp=mpp, oversampling=oversampling, rng=rng)
        inside = (section.gland > 0).reshape(size, oversampling, size, oversampling).mean(axis=(1, 3))
        return image, (inside >= 0.5).astype(np.uint8)


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
