"""Reference distributions of one or both of two synthetic labs, and the scores of new images of each."""

from pathlib import Path

import numpy as np
import pytest

from microseg.datasets.dataset import LabDataset
from microseg.datasets.image_table import read_image_table
from microseg.datasets.lab import read_lab_metadata
from microseg.datasets.manifest import ManifestRow
from microseg.evaluation.label_free import fit_reference_distribution, lab_targets, ood_scores
from microseg.inference.out_of_distribution import image_ood_score
from microseg.models.reference_distribution import ReferenceDistribution, summarize_scores
from microseg.slides.images import read_image
from microseg.synthetic.labs import LAB_A, LAB_B, LabProfile, generate_lab

SIDE = 96


def create(folder: Path, look: LabProfile, images: int, seed: int) -> LabDataset:
    generate_lab(folder, look, images=images, size=SIDE, labelled=False, seed=seed)
    listed = read_image_table(folder)
    rows = []
    for path in sorted((folder / "images").iterdir()):
        slide = next(entry.group for key, entry in listed.items() if key.startswith(path.stem))
        assert slide is not None
        rows.append(ManifestRow(f"images/{path.name}", None, slide, "train", SIDE, SIDE, 1.0, "0" * 64))
    return LabDataset(folder, read_lab_metadata(folder), tuple(rows))


@pytest.fixture(scope="module")
def labs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LabDataset]:
    folder = tmp_path_factory.mktemp("labs")
    plan = {"a": (LAB_A, 24, 0), "b": (LAB_B, 24, 0), "new a": (LAB_A, 24, 1), "new b": (LAB_B, 12, 1)}
    return {name: create(folder / name, *how) for name, how in plan.items()}


def scores(reference: ReferenceDistribution, lab: LabDataset) -> list[float]:
    return ood_scores(reference, lab_targets(lab), 1.0)


def test_images_of_another_stain_are_out_of_distribution(labs: dict[str, LabDataset]) -> None:
    reference = fit_reference_distribution([labs["a"]], 1.0)
    own, other = (summarize_scores(scores(reference, labs[name])) for name in ("new a", "new b"))
    assert (own.images, other.images) == (24, 12)
    assert own.out_of_distribution <= 2  # the images of one slide
    assert 0.2 < own.median_score < 0.8
    assert not own.exceeds_limits
    assert other.share > 0.9
    assert other.median_score > 1.5
    assert other.exceeds_limits


def test_images_of_both_reference_labs_are_in_distribution(labs: dict[str, LabDataset]) -> None:
    reference = fit_reference_distribution([labs["a"], labs["b"]], 1.0)
    assert {name: lab.images for name, lab in reference.labs.items()} == {"lab_a": 24, "lab_b": 24}
    for name in ("new a", "new b"):
        assert summarize_scores(scores(reference, labs[name])).share <= 0.1


def test_lab_of_few_images_is_left_out(labs: dict[str, LabDataset]) -> None:
    few = LabDataset(labs["a"].folder, labs["a"].metadata, labs["a"].rows[:4])
    assert fit_reference_distribution([few], 1.0).labs == {}
    assert np.isnan(scores(fit_reference_distribution([few], 1.0), few)).all()


def test_images_are_compared_at_the_models_scale(labs: dict[str, LabDataset]) -> None:
    """The same pixels with another pixel size have other features at the model's scale."""
    reference, lab = fit_reference_distribution([labs["a"]], 1.0), labs["new a"]
    image = read_image(lab.image_path(lab.rows[0]))
    (at_one,) = ood_scores(reference, lab_targets(lab)[:1], 1.0)
    (at_half,) = ood_scores(reference, lab_targets(lab)[:1], 2.0)
    assert at_one == image_ood_score(reference, image, 1.0)
    assert at_half == image_ood_score(reference, image, 0.5)
    assert at_half > at_one
