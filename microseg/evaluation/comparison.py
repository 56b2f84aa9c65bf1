"""Comparison of a candidate with the production model, on the source labs and on the target lab."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import nan
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from pydantic import TypeAdapter
from pydantic_core import from_json, to_json

from microseg.config.params import GateSettings
from microseg.datasets.dataset import LabDataset
from microseg.datasets.manifest import Split
from microseg.datasets.sampling import CropSampler, Sample
from microseg.evaluation.criteria import domain_separability
from microseg.evaluation.label_free import (
    TargetImage,
    expected_foreground_share,
    lab_targets,
    label_free_scores,
    ood_scores,
)
from microseg.evaluation.pixel_criteria import PixelCriteria
from microseg.evaluation.references import bootstrap_interval, lab_references, mean_scores, score
from microseg.inference.engine import Engine
from microseg.models.network import PyramidSegmenter
from microseg.models.reference_distribution import ReferenceDistribution, summarize_scores
from microseg.registry.evidence import ConfidenceInterval, Evidence
from microseg.registry.model_card import Scores, measurement_name
from microseg.slides.pixel_size import model_zoom

__all__ = ["Comparison", "compare"]

_LABEL_FREE_IMAGES = 200  # largest number of images of a lab, spread evenly
_HELD_OUT: tuple[Split, ...] = ("val", "test")  # splits of a target lab whose masks no adaptation trains on
_SEPARABILITY_IMAGES = 16
_SEPARABILITY_CROP = 256  # pixels


@dataclass(frozen=True)
class Comparison:
    """Evidence on a candidate and on the production model, measured on the same images.

    Args:
        candidate: Evidence on the candidate.
        production: Evidence on the model in production; None if there is none yet.
        target: Name of the target lab; None if only source labs were evaluated.
        scores: By lab, then by metric, the mean over the labelled images of the candidate and of production.
        uncertainty: Mean entropy (0..1) of the candidate's predictions, by the name of each image of the target lab.
    """

    candidate: Evidence
    production: Evidence | None
    target: str | None = None
    scores: Scores = field(default_factory=dict)
    uncertainty: Mapping[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, dict[str, float]]:
        """Return the candidate's metrics for MLflow: by lab, then by name, such as ``dice/lab_a``."""
        metrics = {
            lab: {f"{name}/{lab}": new for name, (new, _) in scores.items() if new is not None}
            for lab, scores in self.scores.items()
        }
        if self.target:
            label_free = {f"{name}/{self.target}": value for name, value in self.candidate.label_free.items()}
            metrics[self.target] = metrics.get(self.target, {}) | label_free
        return metrics

    def rows(self) -> list[tuple[str, float | None, float | None]]:
        """Return the rows of a table: measurement, candidate, production; not those of an only class again."""
        rows: list[tuple[str, float | None, float | None]] = []
        for lab, scores in self.scores.items():
            classes = [name.removeprefix("dice") for name in scores if name.startswith("dice_")]
            only = classes[0] if len(classes) == 1 else "\0"
            for name, (new, old) in scores.items():
                if not (name.endswith(only) and name.removesuffix(only) in scores):
                    rows.append((f"{lab}: {measurement_name(name)}", new, old))
        if (gain := self.candidate.target_gain) is not None:
            parts = {"": gain.value, ", lower bound": gain.low, ", upper bound": gain.high}
            rows += [(f"{self.target}: gain of Dice{part}", value, None) for part, value in parts.items()]
        old_values = self.production.label_free if self.production else {}
        for name, value in self.candidate.label_free.items():
            rows.append((f"{self.target}: {measurement_name(name)}", value, old_values.get(name)))
        return rows

    def to_json(self) -> str:
        """Convert to JSON; NaN becomes null."""
        return to_json(self, indent=2, inf_nan_mode="null").decode() + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Comparison":
        """Restore from `to_json`; null measurements become NaN."""
        values = from_json(text)
        sides = {side: _with_nan(values[side]) for side in ("candidate", "production")}
        return TypeAdapter(cls).validate_python(values | sides)


@dataclass(frozen=True)
class _Evaluation:
    evidence: Evidence
    scores: dict[str, Mapping[str, float]]
    uncertainty: dict[str, float]
    target_dice: pd.Series | None = None  # Dice of each image of the target lab with a mask, indexed by slide


def compare(
    candidate: PyramidSegmenter,
    production: PyramidSegmenter | None,
    *,
    source: Sequence[LabDataset],
    target: LabDataset | None,
    reference: tuple[ReferenceDistribution | None, ReferenceDistribution | None] = (None, None),
    engine: Callable[[PyramidSegmenter], Engine] = Engine,
    min_target_slides: int = GateSettings().min_target_slides,
    on_image: Callable[[str], None] = lambda _name: None,
) -> Comparison:
    """Evaluate two networks on the same images.

    Args:
        candidate: The candidate network.
        production: The network in production.
        source: Source labs; their ``test`` split is scored.
        target: The target lab. It gives label-free measurements, Dice on its held-out masks if it has some, and the
            Dice gained, image by image, if these are of ``min_target_slides`` or more. Those of the split ``train``
            are what a candidate was adapted with.
        reference: Reference distributions of the candidate and of production, for the out-of-distribution score; None
            if unknown.
        engine: Creates the inference engine of a network.
        min_target_slides: See `GateSettings`.
        on_image: Called with the name of each evaluated image.

    Returns:
        The comparison.
    """
    expected = expected_foreground_share(source)
    pixels = None if target is None else PixelCriteria.of(source, target, candidate.config.mpp)
    run = partial(
        _evaluate, source=source, target=target, engine=engine, expected=expected, pixels=pixels, on_image=on_image
    )
    new = run(candidate, reference=reference[0])
    old = None if production is None else run(production, reference=reference[1])
    scores = {
        lab: {name: (value, None if old is None else old.scores[lab].get(name)) for name, value in values.items()}
        for lab, values in new.scores.items()
    }
    evidence = new.evidence
    if old is not None:
        evidence = replace(evidence, target_gain=_dice_gain(new.target_dice, old.target_dice, min_target_slides))
    return Comparison(
        evidence, old.evidence if old else None, target.metadata.lab if target else None, scores, new.uncertainty
    )


def _dice_gain(new: pd.Series | None, old: pd.Series | None, min_slides: int) -> ConfidenceInterval | None:
    """The mean difference of Dice on the target lab's masks, bootstrapped by slide."""
    if new is None or old is None:
        return None
    gain = (new - old).dropna()
    if gain.index.nunique() < min_slides:
        return None
    return bootstrap_interval(gain.to_numpy(float), gain.index.to_list())


def _evaluate(
    network: PyramidSegmenter,
    *,
    source: Sequence[LabDataset],
    target: LabDataset | None,
    reference: ReferenceDistribution | None,
    engine: Callable[[PyramidSegmenter], Engine],
    expected: float,
    pixels: PixelCriteria | None,
    on_image: Callable[[str], None],
) -> _Evaluation:
    ready, classes = engine(network), network.config.classes
    scores: dict[str, Mapping[str, float]] = {}
    source_f1: dict[str, float] = {}
    for lab in source:
        held_out = lab_references(lab, "test")
        table = score(ready.outputs, held_out, classes, on_image, objects=True, label=ready.label_objects)
        measured = scores[lab.metadata.lab] = mean_scores(table)
        if any(reference.instances is not None for reference in held_out):
            source_f1[lab.metadata.lab] = measured["f1_at_50"]
    label_free: dict[str, int | float] = {}
    uncertainty: dict[str, float] = {}
    interval, target_dice = None, None
    if target is not None:
        images = lab_targets(target, _LABEL_FREE_IMAGES)
        label_free |= label_free_scores(ready.probabilities, images, len(classes), on_image, uncertainty.__setitem__)
        label_free |= {"expected_foreground_share": expected, "images": len(images)}
        if pixels is not None:
            label_free |= pixels.measure(ready.probabilities)
        if reference is not None:
            summary = summarize_scores(ood_scores(reference, images, network.config.mpp))
            label_free |= {"ood_score": summary.median_score, "ood_share": summary.share}
        source_images = [image for lab in source for image in lab_targets(lab, _SEPARABILITY_IMAGES)]
        target_images = lab_targets(target, _SEPARABILITY_IMAGES)
        if min(len(source_images), len(target_images)) > 1:
            label_free["domain_separability"] = domain_separability(
                _pooled_features(network, source_images),
                _pooled_features(network, target_images),
                ([it.slide for it in source_images], [it.slide for it in target_images]),
            )
        references = [reference for split in _HELD_OUT for reference in lab_references(target, split)]
        if references:
            table = score(ready.outputs, references, classes, on_image, objects=True, label=ready.label_objects)
            scores[target.metadata.lab] = mean_scores(table)
            slides = [reference.slide or reference.name for reference in references]
            target_dice = pd.Series(table["dice"].to_numpy(float), slides)
            interval = bootstrap_interval(target_dice.to_numpy(), slides)
    dice = {lab.metadata.lab: scores[lab.metadata.lab]["dice"] for lab in source}
    evidence = Evidence(source_dice=dice, target_dice=interval, label_free=label_free, source_f1=source_f1)
    return _Evaluation(evidence, scores, uncertainty, target_dice)


@torch.inference_mode()
def _pooled_features(network: PyramidSegmenter, images: Sequence[TargetImage]) -> npt.NDArray[np.float32]:
    """Mean of the pyramid features over a crop of each image at the model's scale: the image-level classifier's input.

    Shape:
        (N, D)
    """
    mpp, device = network.config.mpp, next(network.parameters()).device
    network.eval()
    rows = []
    for image in images:
        crop = CropSampler(
            [Sample(image.image, zoom=model_zoom(image.mpp, mpp))], size=_SEPARABILITY_CROP, batch=1, seed=0
        ).draw(0)
        pyramid = network.features(crop.images.to(device)).pyramid  # (1, D, h, w)
        rows.append(pyramid.mean((0, 2, 3)).cpu().numpy())  # (D,)
    return np.array(rows, np.float32)


def _with_nan(side: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The evidence with NaN for null, so that an unknown measurement stays in the table."""
    if side is None:
        return None
    values = {key: value for key, value in side.items() if value is not None}
    return {key: {name: nan if value is None else value for name, value in values[key].items()} for key in values}
