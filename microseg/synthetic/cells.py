"""Synthetic labs of single cells: nuclei in dense tissue or in sparse smears, at any class balance.

The density of cells is a parameter, so that two labs may differ in their class balance alone. In a smear each nucleus
lies in a paler cell body on glass: the largest dark regions of the image are not the objects.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from microseg.datasets.stain import transmitted_light
from microseg.synthetic.artifacts import add_artifacts
from microseg.synthetic.canvas import Canvas, FloatMap, Points, soft_step
from microseg.synthetic.scanner import Scanner, scan

__all__ = ["CELLS_DAB", "CELLS_HE", "SMEAR", "CellProfile"]

_MARGIN = 16.0  # microns generated around the image and cropped
_LYMPHOCYTE = (6.2, 5.8)  # microns

Amount = tuple[float, float, float]


@dataclass(frozen=True)
class CellProfile:
    """Properties of a lab of single cells. Derive another one with ``dataclasses.replace``.

    Amounts are (hematoxylin, eosin, DAB), in optical density along each stain's unit vector.

    Args:
        name: Name of the lab; also the prefix of its file names.
        stain: The stain, as stated in ``lab.yaml``.
        nucleus: Amounts in a nucleus.
        lymphocyte: Amounts in a lymphocyte's nucleus.
        ground: Amounts between the nuclei: stroma in tissue, glass in a smear.
        body: Amounts in the cell bodies of a smear.
        scanner: The scanner.
        density: Cells per square millimeter.
        nucleus_size: Length and width of a nucleus, in microns.
        body_size: Diameter of the cell bodies, in microns; 0 for tissue, which has no separate bodies.
        lymphocytes: Fraction of the cells that are lymphocytes, with small round nuclei.
        typed: Whether lymphocytes are a class of their own; otherwise all nuclei are one class.
        empty: Fraction of slides without any cell.
        artifacts: Fraction of images with an artifact of preparation or scanning.
        slide_variation: Spread from slide to slide, as a fraction (standard deviation of the logarithm).
    """

    name: str
    stain: str
    nucleus: Amount
    lymphocyte: Amount
    ground: Amount
    body: Amount = (0.0, 0.0, 0.0)
    scanner: Scanner = field(default_factory=Scanner)
    density: float = 2300.0
    nucleus_size: tuple[float, float] = (9.5, 7.2)
    body_size: float = 0.0
    lymphocytes: float = 0.15
    typed: bool = False
    empty: float = 0.0
    artifacts: float = 0.0
    slide_variation: float = 0.14

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, background first."""
        return ("background", "nucleus", "lymphocyte") if self.typed else ("background", "nucleus")

    @property
    def preparation(self) -> str:
        """Tissue and preparation, as stated in ``lab.yaml``."""
        return "cell smear (synthetic)" if self.body_size else "cells in tissue (synthetic)"

    def vary(self, rng: np.random.Generator) -> Self:
        """Profile of one slide: stain, scanner, density and size of the nuclei vary."""
        spread = self.slide_variation
        stains, tint = np.exp(rng.normal(0.0, spread, 3)), 1.0 + rng.normal(0.0, 0.15 * spread, 3)
        size, density, blur = np.exp(rng.normal(0.0, spread, 3))
        white = tuple(np.multiply(self.scanner.white, tint).tolist())
        stained: dict[str, Any] = {
            name: tuple((getattr(self, name) * stains).tolist()) for name in ("nucleus", "lymphocyte", "ground", "body")
        }
        return replace(
            self,
            **stained,
            scanner=replace(self.scanner, white=white, blur=self.scanner.blur * blur),
            density=0.0 if rng.random() < self.empty else self.density * density,
            nucleus_size=tuple((size**0.5 * np.array(self.nucleus_size)).tolist()),
        )

    def draw(
        self, size: int, mpp: float, rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Draw one image and its mask; see `microseg.synthetic.labs.generate_image`."""
        oversampling = 1 if mpp <= 0.5 else 2
        pixel = mpp / oversampling
        margin = round(_MARGIN / pixel)
        side = size * oversampling
        canvas = Canvas((side + 2 * margin, side + 2 * margin), pixel, rng)
        along = (2.0 * canvas.noise(25.0)).astype(np.float32)
        grain = 1.0 + 0.16 * canvas.noise(0.8) + 0.10 * canvas.noise(4.0)

        spots = self._cells(canvas)
        small = rng.random(len(spots)) < self.lymphocytes
        nuclei = canvas.ellipses(spots[~small], along, self.nucleus_size, turn=0.5, strength=(1.0, 1.0))
        lymphocytes = canvas.ellipses(spots[small], along, _LYMPHOCYTE, strength=(1.0, 1.0))
        stained = self._bodies(canvas, spots[~small], along) if self.body_size else self._stroma(canvas, along)
        for amount, cover in ((self.nucleus, nuclei), (self.lymphocyte, lymphocytes)):
            depth = grain * (1.0 + 0.2 * canvas.noise(9.0))  # differs from nucleus to nucleus
            stained += cover[..., None] * (np.asarray(amount, np.float32) * depth[..., None] - stained)
        inside = slice(margin, margin + side)
        light = add_artifacts(transmitted_light(np.maximum(stained[inside, inside], 0.0)), self.artifacts, pixel, rng)
        image = scan(light, self.scanner, mpp=mpp, oversampling=oversampling, rng=rng)
        truth = np.zeros((size, size), np.uint8)
        for label, cover in ((1, nuclei), (2 if self.typed else 1, lymphocytes)):
            whole = (cover[inside, inside] >= 0.5).reshape(size, oversampling, size, oversampling).mean(axis=(1, 3))
            truth[whole >= 0.5] = label
        return image, truth

    def _cells(self, canvas: Canvas) -> Points:
        """Cells that do not overlap by much, by random sequential addition."""
        wanted = canvas.rng.poisson(self.density * canvas.square_millimeters)
        apart = np.square(0.92 * np.mean(self.nucleus_size) / canvas.pixel)
        spots = np.zeros((0, 2), np.int64)
        for point in canvas.rng.integers(0, canvas.shape, (12 * wanted, 2)):
            if len(spots) >= wanted:
                break
            if np.all(np.square(spots - point).sum(axis=1) >= apart):
                spots = np.vstack([spots, point])
        return spots

    def _stroma(self, canvas: Canvas, along: FloatMap) -> npt.NDArray[np.float32]:
        """Fibers between the nuclei of tissue."""
        texture = np.maximum(1.0 + 0.25 * canvas.fibers(along) + 0.25 * canvas.noise(18.0), 0.1)
        stained: npt.NDArray[np.float32] = np.asarray(self.ground, np.float32) * texture[..., None]
        return stained

    def _bodies(self, canvas: Canvas, spots: Points, along: FloatMap) -> npt.NDArray[np.float32]:
        """Cell bodies around the nuclei of a smear, with folds and debris; where bodies overlap, they add up."""
        rng = canvas.rng
        moved = spots + rng.normal(0.0, 0.08 * self.body_size / canvas.pixel, spots.shape)
        centers: Points = moved.round().astype(np.int64).clip(0, np.array(canvas.shape) - 1)
        y, x = np.indices(canvas.shape, dtype=np.float32)
        bent = [axis + 0.08 * self.body_size / canvas.pixel * canvas.noise(0.2 * self.body_size) for axis in (y, x)]
        cover = np.zeros(canvas.shape, np.float32)
        for part in range(3):
            size = (1.1 * self.body_size, 0.9 * self.body_size)
            one = canvas.ellipses(centers[part::3], along, size, turn=0.8, strength=(0.7, 1.0))
            cover += ndimage.map_coordinates(one, bent, order=1, mode="nearest")
        folds = soft_step(2.0 * (canvas.fibers(along, length=20.0, width=3.0) - 2.0)) * np.minimum(cover, 1.0)
        debris = canvas.ellipses(canvas.scatter(cover > 0.3, 1500.0), along, (3.0, 1.0), turn=2.0)
        amount = (cover * (1.0 + 0.12 * canvas.noise(1.5)) + 1.2 * folds + 0.8 * debris)[..., None]
        stained: npt.NDArray[np.float32] = (
            np.asarray(self.ground, np.float32) + np.asarray(self.body, np.float32) * amount
        )
        return stained


CELLS_HE = CellProfile(
    name="cells_he",
    stain="H&E",
    nucleus=(0.62, 0.26, 0.0),
    lymphocyte=(0.95, 0.24, 0.0),
    ground=(0.12, 0.32, 0.0),
    scanner=Scanner(white=(0.95, 0.94, 0.95), overlap=0.25, blur=0.45, photons=3000.0),
)

CELLS_DAB = CellProfile(
    name="cells_dab",
    stain="DAB-H",
    nucleus=(0.36, 0.0, 0.10),
    lymphocyte=(0.52, 0.0, 0.06),
    ground=(0.10, 0.0, 0.16),
    scanner=Scanner(white=(0.93, 0.92, 0.86), overlap=0.08, gamma=1.1, blur=0.7, photons=1500.0, jpeg_quality=75),
    nucleus_size=(9.0, 7.4),
)

SMEAR = CellProfile(
    name="smear",
    stain="unknown",
    nucleus=(0.36, 0.10, 0.26),
    lymphocyte=(0.45, 0.12, 0.33),
    ground=(0.02, 0.01, 0.02),
    body=(0.10, 0.04, 0.09),
    scanner=Scanner(white=(0.92, 0.92, 0.91), overlap=0.3, blur=0.5, photons=2500.0),
    density=330.0,
    nucleus_size=(9.0, 7.0),
    body_size=40.0,
    lymphocytes=0.05,
)
