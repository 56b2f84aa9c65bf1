"""A candidate beside the production model: what it must not lose, and what it gains on the new lab."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import isfinite, nan
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from pydantic import TypeAdapter

from microseg.datasets.dataset import LabDataset
from microseg.datasets.sampling import CropSampler, Sample
from microseg.evaluation.criteria import domain_separability
from microseg.evaluation.label_free import TargetImage, expected_foreground_share, lab_targets, label_free_scores
from microseg.evaluation.reference_distribution import ood_scores
from microseg.evaluation.references import bootstrap_interval, lab_references, mean_scores, score
from microseg.inference.engine import Engine
from microseg.models.network import PyramidSegmenter
from microseg.models.reference_distribution import ReferenceDistribution, summarize_scores
from microseg.registry.gate import ConfidenceInterval, Evidence
from microseg.slides.pixel_size import model_zoom

__all__ = ["Comparison", "compare"]

_LABEL_FREE_IMAGES = 200  # of a lab, spread evenly: more would tell no more
_SEPARABILITY_IMAGES = 16
_SEPARABILITY_CROP = 256  # pixels
_MASKED_SLIDES = 3  # of the new lab, at least, with masks: fewer do not tell a gain from chance


@dataclass(frozen=True)
class Comparison:
    """Evidence on a candidate and on the production model, measured on the same images.

    Attributes:
        candidate: evidence on the candidate.
        production: evidence on the model in use; None where there is none yet.
        target: name of the new lab; None where only labelled labs were looked at.
        scores: by lab, then by figure, the candidate's and production's mean over the held-out images.
    """

    candidate: Evidence
    production: Evidence | None
    target: str | None = None
    scores: Mapping[str, Mapping[str, tuple[float | None, float | None]]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; what is not reference is null."""
        plain: dict[str, Any] = _without_nan(asdict(self))
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Comparison":
        """Back from `to_dict`; a figure that was not reference is nan."""
        sides = {side: _with_nan(values[side]) for side in ("candidate", "production")}
        return TypeAdapter(cls).validate_python(dict(values) | sides)


@dataclass(frozen=True)
class _Side:
    evidence: Evidence
    scores: dict[str, Mapping[str, float]]
    masked: pd.Series | None = None  # Dice of each image of the new lab that has a mask, by its slide


def compare(
    candidate: PyramidSegmenter,
    production: PyramidSegmenter | None,
    *,
    source: Sequence[LabDataset],
    target: LabDataset | None,
    reference: tuple[ReferenceDistribution | None, ReferenceDistribution | None] = (None, None),
    engine: Callable[[PyramidSegmenter], Engine] = Engine,
    on_image: Callable[[str], None] = lambda _name: None,
) -> Comparison:
    """Judge two networks on the same images.

    Args:
        candidate: the network proposed.
        production: the network in use.
        source: labelled labs; their ``test`` split is scored.
        target: the new lab. Without masks it gives label-free evidence; where it sent some, also Dice on them, and
            where these are of three slides or more, the Dice gained, image by image.
        reference: reference distributions of the candidate and of the network in use, for the score; None where
            that was not kept.
        engine: makes a network ready to segment.
        on_image: called with an image's name each time that one is done.

    Returns:
        The comparison.
    """
    expected = expected_foreground_share(source)
    judge = partial(_judge, source=source, target=target, engine=engine, expected=expected, on_image=on_image)
    new = judge(candidate, reference=reference[0])
    old = None if production is None else judge(production, reference=reference[1])
    scores = {
        lab: {name: (value, None if old is None else old.scores[lab].get(name)) for name, value in figures.items()}
        for lab, figures in new.scores.items()
    }
    evidence = new.evidence if old is None else replace(new.evidence, target_gain=_gain(new.masked, old.masked))
    return Comparison(evidence, old.evidence if old else None, target.metadata.lab if target else None, scores)


def _gain(new: pd.Series | None, old: pd.Series | None) -> ConfidenceInterval | None:
    """Dice gained on the new lab's masks: the difference on each image, drawn by slide."""
    if new is None or old is None:
        return None
    gained = (new - old).dropna()
    if gained.index.nunique() < _MASKED_SLIDES:
        return None
    return bootstrap_interval(gained.to_numpy(float), gained.index.to_list())


def _judge(
    network: PyramidSegmenter,
    *,
    source: Sequence[LabDataset],
    target: LabDataset | None,
    reference: ReferenceDistribution | None,
    engine: Callable[[PyramidSegmenter], Engine],
    expected: float,
    on_image: Callable[[str], None],
) -> _Side:
    ready, classes = engine(network), network.config.classes
    scores = {
        lab.metadata.lab: mean_scores(score(ready.probabilities, lab_references(lab, "test"), classes, on_image))
        for lab in source
    }
    label_free: dict[str, int | float] = {}
    interval, masked = None, None
    if target is not None:
        looked_at = lab_targets(target, _LABEL_FREE_IMAGES)
        label_free |= label_free_scores(ready.probabilities, looked_at, len(classes), on_image)
        label_free |= {"expected_foreground_share": expected, "images": len(looked_at)}
        if reference is not None:
            ood_score = summarize_scores(ood_scores(reference, looked_at, network.config.mpp))
            label_free |= {"ood_score": ood_score.median, "drift_share": ood_score.share}
        images = [image for lab in source for image in lab_targets(lab, _SEPARABILITY_IMAGES)]
        others = lab_targets(target, _SEPARABILITY_IMAGES)
        if min(len(images), len(others)) > 1:
            label_free["domain_separability"] = domain_separability(
                _pooled(network, images),
                _pooled(network, others),
                ([it.slide for it in images], [it.slide for it in others]),
            )
        references = [reference for split in ("train", "val", "test") for reference in lab_references(target, split)]
        if references:
            table = score(ready.probabilities, references, classes, on_image)
            scores[target.metadata.lab] = mean_scores(table)
            slides = [reference.slide or reference.name for reference in references]
            masked = pd.Series(table["dice"].to_numpy(float), slides)
            interval = bootstrap_interval(masked.to_numpy(), slides)
    dice = {lab.metadata.lab: scores[lab.metadata.lab]["dice"] for lab in source}
    return _Side(Evidence(source_dice=dice, target_dice=interval, label_free=label_free), scores, masked)


@torch.inference_mode()
def _pooled(network: PyramidSegmenter, images: Sequence[TargetImage]) -> npt.NDArray[np.float32]:
    """Mean of the pyramid's output over a crop of each image at the model's scale: what the image-level adversary sees.

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


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _with_nan(side: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The evidence with nan for null, so that an unknown figure stays one that was asked for."""
    if side is None:
        return None
    figures = {key: value for key, value in side.items() if value is not None}
    return {key: {name: nan if value is None else value for name, value in figures[key].items()} for key in figures}
