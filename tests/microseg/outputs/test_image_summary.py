import math

import numpy as np
import numpy.typing as npt
import pytest

from microseg.outputs.image_summary import summarize
from microseg.outputs.record import Provenance
from microseg.outputs.segmentation import Segmentation
from tests.microseg.outputs.finding import CLASSES, image_info, two_rectangles


def segmentation(
    mask: npt.NDArray[np.uint8], probabilities: npt.NDArray[np.float32], mpp: float | None
) -> Segmentation:
    return Segmentation(mask, probabilities, CLASSES, mpp, Provenance(model="m"), "a.png")


def test_summary_as_computed_by_hand() -> None:
    probabilities = np.zeros((3, 10, 20), np.float32)
    probabilities[0] = 1.0
    probabilities[:, :5] = 1 / 3  # half of the image: all classes equally probable
    summary = segmentation(two_rectangles(), probabilities, 0.5).summary
    assert summary == pytest.approx(
        {
            "area_mm2": 200 * 0.25 / 1e6,
            "tissue_mm2": None,
            "glass_mm2": None,
            "objects_gland": 1,
            "objects_per_mm2_gland": 1 / (200 * 0.25 / 1e6),
            "area_fraction_gland": 24 / 200,
            "objects_stroma": 1,
            "objects_per_mm2_stroma": 1 / (200 * 0.25 / 1e6),
            "area_fraction_stroma": 4 / 200,
            "mean_confidence": (1 + 1 / 3) / 2,
            "mean_entropy": 0.5,
        }
    )


def test_fractions_and_densities_are_of_the_tissue() -> None:
    """A quarter of a slide of 1 mm² is tissue, of which 40 % is gland."""
    info = image_info(np.zeros((1000, 1000), np.uint8), mpp=1.0)
    summary = summarize(info, np.array([900_000, 100_000, 0]), np.array([0, 50, 0]), None, tissue=0.25)
    assert summary["area_mm2"] == 1.0
    assert (summary["tissue_mm2"], summary["glass_mm2"]) == (0.25, 0.75)
    assert summary["area_fraction_gland"] == pytest.approx(0.4)
    assert summary["objects_per_mm2_gland"] == pytest.approx(200)
    nothing = summarize(info, np.array([1_000_000, 0, 0]), np.array([0, 0, 0]), None, tissue=0.0)
    assert nothing["area_fraction_gland"] is None
    assert nothing["objects_per_mm2_gland"] is None


def test_summary_of_many_rows() -> None:
    random = np.random.default_rng(0).dirichlet([1, 1, 1], (700, 5)).astype(np.float32)
    probabilities = np.moveaxis(random, 2, 0)
    summary = segmentation(probabilities.argmax(0).astype(np.uint8), probabilities, None).summary
    assert summary["mean_confidence"] == pytest.approx(probabilities.max(0).mean(), abs=1e-6)
    assert summary["mean_entropy"] == pytest.approx(-(random * np.log(random)).sum(2).mean() / math.log(3), abs=1e-5)
