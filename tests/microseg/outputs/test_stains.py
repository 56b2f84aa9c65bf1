"""Stain vectors, stated or estimated, and DAB-positive objects."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from pydantic import ValidationError

from microseg.config.params import InferenceSettings
from microseg.errors import DataError, SettingsError
from microseg.outputs.record import Provenance, read_record
from microseg.outputs.segmentation import Segmentation
from microseg.outputs.stain_estimation import estimate_stains
from microseg.outputs.stains import KNOWN_STAINS, StainOptions
from tests.microseg.outputs.finding import image_info

VECTORS = {"hematoxylin": (0.55, 0.76, 0.35), "dab": (0.35, 0.52, 0.78)}  # of another lab


def stained(vectors: dict[str, tuple[float, float, float]], side: int = 128) -> npt.NDArray[np.uint8]:
    """Nuclei on the left, DAB on the right, both in the middle, and glass."""
    rng = np.random.default_rng(0)
    amounts = rng.uniform(0.3, 0.9, (side, side, 2))
    amounts[:, : side // 2, 1] *= rng.uniform(0, 1, (side, side // 2)) > 0.8
    amounts[:, side // 2 :, 0] *= rng.uniform(0, 1, (side, side // 2)) > 0.8
    amounts[: side // 4] = 0
    unit = np.array(list(vectors.values()))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return np.round(255 * 10 ** -(amounts @ unit)).astype(np.uint8)


@pytest.mark.parametrize("names", [("hematoxylin", "dab"), ("dab", "hematoxylin"), ("hematoxylin", "eosin")])
def test_estimated_vectors_are_those_of_the_image(names: tuple[str, str]) -> None:
    true = {name: VECTORS.get(name, (0.15, 0.95, 0.25)) for name in names}
    found = estimate_stains(stained(true), {name: KNOWN_STAINS[name] for name in names})
    assert found is not None
    assert list(found) == list(names)
    for name in names:
        wanted = np.array(true[name]) / np.linalg.norm(true[name])
        assert np.dot(found[name], wanted) > 0.999, name
        assert np.linalg.norm(found[name]) == pytest.approx(1)
        assert np.dot(KNOWN_STAINS[name], wanted) < 0.997


def test_image_without_stain_is_measured_with_the_published_vectors_and_says_so() -> None:
    known = {name: KNOWN_STAINS[name] for name in ("hematoxylin", "dab")}
    pale, colored = np.full((64, 64, 3), 240, np.uint8), stained(VECTORS)
    assert estimate_stains(pale, known) is None
    options = StainOptions(("hematoxylin", "dab"), estimate=True)
    facts = [options.facts(lambda image=image: image) for image in (pale, colored)]  # type: ignore[misc]
    assert [(it["stains_estimated"], it["stains_too_pale"]) for it in facts] == [(False, True), (True, False)]
    assert facts[0]["stain_vectors"] == known != facts[1]["stain_vectors"]
    for image, each in zip((pale, colored), facts, strict=True):
        record = image_info(image[..., 0]).model_copy(update=each)
        assert options.same(record)
        assert not StainOptions(("hematoxylin", "dab")).same(record)


def test_image_of_one_stain_is_refused() -> None:
    """Two vectors of one stain would make any measurement."""
    one = dict.fromkeys(("hematoxylin", "dab"), (0.55, 0.76, 0.35))
    with pytest.raises(DataError, match=r"state the vectors of this lab"):
        estimate_stains(stained(one), {name: KNOWN_STAINS[name] for name in one})


@pytest.mark.parametrize(
    "wrong",
    [
        {"names": ("hematoxylin",), "estimate": True},
        {"names": ("hematoxylin",), "vectors": {"dab": (0.3, 0.5, 0.8)}},
        {"names": ("hematoxylin", "dab"), "vectors": {"dab": KNOWN_STAINS["hematoxylin"]}},
        {"names": ("silver",)},
    ],
)
def test_options_that_cannot_be_measured_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        StainOptions(**wrong)  # type: ignore[arg-type]


def test_options_of_the_parameters() -> None:
    stated = InferenceSettings(stains=("dab",), stain_vectors={"dab": (0.3, 0.5, 0.8)}, dab_threshold=0.3)
    assert StainOptions.of(stated) == StainOptions(("dab",), {"dab": (0.3, 0.5, 0.8)}, False, 0.3)
    assert StainOptions.of(InferenceSettings(stains=("hematoxylin", "dab"), stain_vectors="estimated")).estimate
    with pytest.raises(ValidationError):
        InferenceSettings(stain_vectors={"dab": (0.3, -0.5, 0.8)})


def test_labelling_index_is_the_share_of_positive_objects(tmp_path: Path) -> None:
    """Three nuclei with a mean density of DAB of 0.1, 0.25 and 0.5, and a gland without a nucleus."""
    options = StainOptions(("hematoxylin", "dab"))
    vectors = np.array([KNOWN_STAINS[name] for name in options.names])
    amounts, mask = np.zeros((20, 60, 2)), np.zeros((20, 60), np.uint8)
    for number, dab in enumerate((0.1, 0.25, 0.5)):
        mask[5:15, 20 * number + 3 : 20 * number + 13] = 1
        amounts[5:15, 20 * number + 3 : 20 * number + 13] = (0.4, dab)
    mask[0, 0] = 2
    pixels = np.round(255 * 10 ** -(amounts @ vectors)).astype(np.uint8)
    segmentation = Segmentation(
        mask=mask,
        probabilities=None,
        classes=("background", "nucleus", "gland"),
        mpp=0.5,
        provenance=Provenance(model="m/1"),
        source="a.png",
        pixels=pixels,
        **options.facts(lambda: pixels),
    )
    expected = {
        "positive_nucleus": 2,
        "labelling_index_nucleus": 2 / 3,
        "positive_gland": 0,
        "labelling_index_gland": 0,
    }
    for outputs in (["labels", "objects", "outlines"], ["labels"]):
        paths = segmentation.save(tmp_path / outputs[-1], outputs, image=pixels, name="a")
        record = read_record(paths["record"])
        assert {name: record.summary[name] for name in expected} == pytest.approx(expected)
    assert {name: segmentation.summary[name] for name in expected} == pytest.approx(expected)
    table = pd.read_csv(tmp_path / "outlines" / "a.objects.csv")
    assert table.loc[table["class"] == "nucleus", "dab_positive"].tolist() == [0, 1, 1]
    assert options.same(record)
    assert not StainOptions(("hematoxylin", "dab"), dab_threshold=0.3).same(record)
    assert not StainOptions(("hematoxylin", "dab"), VECTORS).same(record)
    assert not StainOptions(("hematoxylin", "dab"), estimate=True).same(record)
    assert not StainOptions(("hematoxylin",)).same(record)
