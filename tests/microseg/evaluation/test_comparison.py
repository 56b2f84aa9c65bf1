import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from microseg.annotations.index_masks import read_mask
from microseg.config.params import GateSettings
from microseg.datasets.appearance import image_features
from microseg.datasets.dataset import LabDataset
from microseg.datasets.lab import LabMetadata
from microseg.datasets.manifest import ManifestRow
from microseg.evaluation.comparison import Comparison, compare
from microseg.evaluation.label_free import expected_foreground_share, fit_reference_distribution
from microseg.evaluation.references import bootstrap_interval
from microseg.models.network import Features, PyramidSegmenter
from microseg.models.reference_distribution import LabDistribution, ReferenceDistribution
from microseg.outputs.objects import label_objects
from microseg.registry.evidence import ConfidenceInterval, Evidence
from microseg.registry.gate import decide
from microseg.slides.images import read_image, write_png


class Threshold:
    """In the place of an engine: foreground is what is darker than a level, which the network's head carries."""

    def __init__(self, network: PyramidSegmenter) -> None:
        self.level = network.head.classify.bias[0].item()

    def probabilities(self, image: npt.NDArray[np.uint8], mpp: float | None = None) -> npt.NDArray[np.float32]:
        dark = image.mean(2) < self.level
        return np.stack([~dark, dark]).astype(np.float32)

    outputs = probabilities

    def label_objects(self, outputs: npt.NDArray[np.float32], mpp: float | None = None) -> npt.NDArray[np.int32]:
        return label_objects(outputs.argmax(0).astype(np.uint8))


@pytest.fixture
def at_level(tiny_network: Callable[..., PyramidSegmenter]) -> Callable[[float], PyramidSegmenter]:
    def make(level: float) -> PyramidSegmenter:
        network = tiny_network()
        torch.nn.init.constant_(network.head.classify.bias, level)  # type: ignore[arg-type]
        return network

    return make


def expected_dice(lab: LabDataset, split: str, level: float) -> float:
    scores = []
    for row in lab.rows:
        if row.split == split:
            truth, found = read_mask(lab.mask_path(row)) == 1, read_image(lab.image_path(row)).mean(2) < level
            scores.append(2 * (truth & found).sum() / (truth.sum() + found.sum()))
    return float(np.mean(scores))


def test_both_are_evaluated_on_the_same_images(
    at_level: Callable[[float], PyramidSegmenter], source_lab: LabDataset, target_lab: LabDataset
) -> None:
    names: list[str] = []
    result = compare(
        at_level(190),
        at_level(150),
        source=[source_lab],
        target=target_lab,
        engine=Threshold,
        on_image=names.append,  # type: ignore[arg-type]
    )
    assert result.production is not None
    assert result.target == "lab_b"
    for side, level, index in ((result.candidate, 190, 0), (result.production, 150, 1)):
        expected = expected_dice(source_lab, "test", level)
        assert side.source_dice == {"lab_a": pytest.approx(expected)}
        assert result.scores["lab_a"]["dice"][index] == pytest.approx(expected)
        shares = [(read_image(target_lab.image_path(row)).mean(2) < level).mean() for row in target_lab.rows]
        assert side.label_free["foreground_share"] == pytest.approx(np.mean(shares))
        assert side.label_free["expected_foreground_share"] == expected_foreground_share([source_lab])
        assert 0 <= side.label_free["domain_separability"] <= 1
        assert 0 < side.label_free["augmentation_consistency"] <= 1
        assert 0 <= side.label_free["forward_validation"] <= 1
        assert side.target_dice is None
    assert result.candidate != result.production
    assert result.scores.keys() == {"lab_a"}
    assert names == 2 * ([n.name for n in _references(source_lab)] + [Path(row.image).stem for row in target_lab.rows])


def _references(lab: LabDataset) -> list[Any]:
    from microseg.evaluation.references import lab_references

    return list(lab_references(lab, "test"))


def test_without_target_lab_and_production_model(
    at_level: Callable[[float], PyramidSegmenter], source_lab: LabDataset
) -> None:
    result = compare(at_level(150), None, source=[source_lab], target=None, engine=Threshold)  # type: ignore[arg-type]
    assert (result.production, result.target, result.candidate.label_free) == (None, None, {})
    assert result.scores["lab_a"]["dice"] == (result.candidate.source_dice["lab_a"], None)
    assert Comparison.from_json(result.to_json()) == result


def test_ood_score_uses_the_reference_distribution_of_each_side(
    at_level: Callable[[float], PyramidSegmenter], source_lab: LabDataset, target_lab: LabDataset
) -> None:
    """Production has one reference lab, the candidate both; a version without reference distribution has no score."""
    one = fit_reference_distribution([source_lab], 1.0)
    assert list(one.labs) == ["lab_a"]
    features = np.array([image_features(read_image(target_lab.image_path(row))) for row in target_lab.rows])
    both = ReferenceDistribution(
        one.features,
        {**one.labs, "lab_b": LabDistribution(4, features.mean(0), np.eye(len(features[0])), 9.0)},
    )

    def label_free_of(
        reference: tuple[ReferenceDistribution | None, ReferenceDistribution | None],
    ) -> list[dict[str, float]]:
        result = compare(
            at_level(190),
            at_level(150),
            source=[source_lab],
            target=target_lab,
            reference=reference,
            engine=Threshold,  # type: ignore[arg-type]
        )
        assert result.production is not None
        return [dict(side.label_free) for side in (result.candidate, result.production)]

    new, old = label_free_of((both, one))
    assert old["ood_score"] == pytest.approx(np.median(one.ood_score(features)))
    assert old["ood_share"] == np.mean(one.ood_score(features) > 1)
    assert (new["ood_score"] < 1, new["ood_share"]) == (True, 0)
    new, old = label_free_of((both, None))
    assert "ood_score" in new
    assert not {"ood_score", "ood_share"} & set(old)


def test_dice_is_measured_on_the_held_out_masks_of_the_target_lab(
    at_level: Callable[[float], PyramidSegmenter], source_lab: LabDataset
) -> None:
    few = dataclasses.replace(source_lab, metadata=source_lab.metadata.model_copy(update={"lab": "lab_c"}))
    result = compare(at_level(150), None, source=[source_lab], target=few, engine=Threshold)  # type: ignore[arg-type]
    held_out = [row for row in few.rows if row.split != "train"]
    each = [expected_dice(dataclasses.replace(few, rows=(row,)), row.split, 150) for row in held_out]
    interval = result.candidate.target_dice
    assert interval is not None
    assert interval.value == pytest.approx(np.mean(each)) == result.scores["lab_c"]["dice"][0]
    assert min(each) < interval.low < interval.value < interval.high < max(each)


def test_gain_is_measured_by_image_and_bootstrapped_by_slide(
    at_level: Callable[[float], PyramidSegmenter], source_lab: LabDataset
) -> None:
    def gain(rows: tuple[ManifestRow, ...]) -> tuple[ConfidenceInterval | None, Comparison]:
        few = dataclasses.replace(
            source_lab, metadata=source_lab.metadata.model_copy(update={"lab": "lab_c"}), rows=rows
        )
        result = compare(at_level(190), at_level(150), source=[source_lab], target=few, engine=Threshold)  # type: ignore[arg-type]
        return result.candidate.target_gain, result

    order = [dataclasses.replace(row, split="test") for row in source_lab.rows]
    every, result = gain(tuple(order))
    each = [dataclasses.replace(source_lab, rows=(row,)) for row in order]
    gained = [expected_dice(it, it.rows[0].split, 190) - expected_dice(it, it.rows[0].split, 150) for it in each]
    assert every == bootstrap_interval(np.array(gained), [row.group for row in order])
    assert every != bootstrap_interval(np.array(gained))
    assert result.production is not None
    assert result.production.target_gain is None
    assert Comparison.from_json(result.to_json()) == result
    assert result.candidate.target_dice is not None
    slides = sorted({row.group for row in source_lab.rows})
    two, result = gain(tuple(row for row in order if row.group in slides[:2]))
    assert two is None
    assert result.candidate.target_dice is not None  # still reported


def lab_of(folder: Path, name: str, images: dict[str, npt.NDArray[np.uint8]], mpp: float | None = None) -> LabDataset:
    rows = []
    for stem, image in images.items():
        write_png(folder / f"{stem}.png", image)
        rows.append(ManifestRow(f"{stem}.png", None, stem, "train", image.shape[1], image.shape[0], mpp, "0" * 64))
    return LabDataset(folder, LabMetadata(lab=name, stain="H&E", classes=("background", "gland")), tuple(rows))


def test_separability_is_measured_at_the_models_scale(
    tiny_network: Callable[..., PyramidSegmenter], tmp_path: Path
) -> None:
    """A lab against itself scanned twice as finely, and against one of another color."""
    rng = np.random.default_rng(0)

    def waves(color: tuple[int, int, int], mpp: float) -> npt.NDArray[np.uint8]:
        y, x = np.mgrid[: round(64 / mpp), : round(64 / mpp)] * mpp  # microns
        phases = rng.uniform(0, 2 * np.pi, (2, 3))
        wave = np.sin(x[..., None] / 4 + phases[0]) + np.sin(y[..., None] / 5 + phases[1])
        return (np.array(color) + 25 * wave).astype(np.uint8)

    def lab(name: str, color: tuple[int, int, int], mpp: float) -> LabDataset:
        (tmp_path / name).mkdir()
        return lab_of(tmp_path / name, name, {f"{name}{n}": waves(color, mpp) for n in range(8)}, mpp)

    pink, fine, brown = (
        lab("pink", (190, 120, 170), 1.0),
        lab("fine", (190, 120, 170), 0.5),
        lab("brown", (150, 120, 90), 1),
    )

    def features(pixels: torch.Tensor) -> Features:
        """The color, and how steep it is along a row."""
        slope = (pixels[..., 1:] - pixels[..., :-1]).abs()
        return Features(pixels, torch.cat([pixels[..., 1:], slope], 1), ())

    def separability(target: LabDataset) -> float:
        network = tiny_network()
        network.features = features  # type: ignore[method-assign]
        result = compare(network, None, source=[pink], target=target, engine=Threshold)  # type: ignore[arg-type]
        return result.candidate.label_free["domain_separability"]

    assert separability(brown) == 1
    assert separability(fine) < 0.9


def unknown() -> Comparison:
    nan = math.nan
    return Comparison(
        candidate=Evidence(
            {"lab_a": 0.8, "lab_c": nan},
            ConfidenceInterval(nan, nan, nan),
            {"augmentation_consistency": nan, "images": 32},
        ),
        production=Evidence({"lab_a": 0.7, "lab_c": nan}, None, {"augmentation_consistency": 0.5, "entropy": 0.2}),
        target="lab_b",
        scores={"lab_a": {"dice": (0.8, nan)}, "lab_b": {"dice": (nan, None)}},
    )


def test_json_form_is_restored() -> None:
    text = unknown().to_json()
    json.dumps(json.loads(text), allow_nan=False)  # raises if a value is not valid JSON
    back = Comparison.from_json(text)
    assert back.to_json() == text
    assert back.target == "lab_b"
    assert back.scores["lab_a"]["dice"] == (0.8, None)
    assert back.candidate.source_dice["lab_a"] == 0.8
    assert math.isnan(back.candidate.source_dice["lab_c"])
    assert math.isnan(back.candidate.label_free["augmentation_consistency"])
    assert repr(back.candidate.label_free["images"]) == "32"  # an integer stays one
    assert back.candidate.target_dice is not None
    assert math.isnan(back.candidate.target_dice.low)
    assert back.production is not None
    assert back.production.target_dice is None


def test_gate_decides_the_same_on_the_json_form() -> None:
    """A lab without measurements is refused; it must not get lost in the file."""
    for nothing in (unknown(), dataclasses.replace(unknown(), production=None)):
        back = Comparison.from_json(nothing.to_json())
        policy = GateSettings()
        before, after = (decide(it.candidate, it.production, policy) for it in (nothing, back))
        assert before == after
        assert not after.promoted
        assert any("lab_c" in result.rule for result in after.rules)


def test_rows_and_metrics() -> None:
    comparison = Comparison(
        candidate=Evidence({"lab_a": 0.8}, None, {"ood_score": 0.5}, ConfidenceInterval(0.1, 0.05, 0.15)),
        production=Evidence({"lab_a": 0.7}, None, {"ood_score": 2.0}),
        target="lab_b",
        scores={"lab_a": {"dice": (0.8, 0.7), "object_f1_gland": (None, 0.5)}},
    )
    assert comparison.rows() == [
        ("lab_a: Dice", 0.8, 0.7),
        ("lab_a: object F1, gland", None, 0.5),
        ("lab_b: gain of Dice", 0.1, None),
        ("lab_b: gain of Dice, lower bound", 0.05, None),
        ("lab_b: gain of Dice, upper bound", 0.15, None),
        ("lab_b: median out-of-distribution score (limit: 1)", 0.5, 2.0),
    ]
    assert comparison.metrics() == {"lab_a": {"dice/lab_a": 0.8}, "lab_b": {"ood_score/lab_b": 0.5}}


def test_rows_do_not_repeat_measurements_of_an_only_class() -> None:
    scores = {"dice": (0.8, 0.7), "dice_gland": (0.8, 0.7), "object_f1": (0.5, 0.4), "object_f1_gland": (0.5, 0.4)}
    comparison = Comparison(Evidence(), None, None, {"lab_a": scores, "lab_b": scores | {"dice_duct": (0.6, 0.5)}})
    assert [name for name, _, _ in comparison.rows()] == [
        "lab_a: Dice", "lab_a: object F1",
        "lab_b: Dice", "lab_b: Dice, gland", "lab_b: object F1", "lab_b: object F1, gland", "lab_b: Dice, duct",
    ]  # fmt: skip


def test_number_of_held_out_slides_for_a_gain_is_a_setting(
    at_level: Callable[[float], PyramidSegmenter], source_lab: LabDataset
) -> None:
    few = dataclasses.replace(source_lab, metadata=source_lab.metadata.model_copy(update={"lab": "lab_c"}))
    slides = len({row.group for row in few.rows if row.split != "train"})

    def gain(minimum: int) -> ConfidenceInterval | None:
        networks = at_level(190), at_level(150)
        result = compare(*networks, source=[source_lab], target=few, engine=Threshold, min_target_slides=minimum)  # type: ignore[arg-type]
        return result.candidate.target_gain

    assert gain(slides) is not None
    assert gain(slides + 1) is None
