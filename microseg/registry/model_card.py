"""The model card: use, data, training, evaluation and the gate's decision of a model version."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from microseg.datasets.dataset import LabDataset
from microseg.escaping import markdown, printable
from microseg.models.config import NetworkConfig
from microseg.registry.decision import Decision
from microseg.registry.evidence import ConfidenceInterval, Evidence
from microseg.registry.version import MODEL_NAME

__all__ = [
    "Evaluation",
    "Scores",
    "TrainedModel",
    "fit_description",
    "format_measurement",
    "headline",
    "measurement_name",
    "model_card",
]

_DESCRIPTION_LENGTH = 5000  # characters that MLflow's database stores

_NAMES = {
    "stain_explained_variance": "stain-explained variance",
    "augmentation_consistency": "augmentation consistency",
    "foreground_share": "foreground share",
    "expected_foreground_share": "expected foreground share",
    "entropy": "prediction entropy",
    "images": "images evaluated",
    "ood_score": "median out-of-distribution score (limit: 1)",
    "ood_share": "share of out-of-distribution images",
    "reverse_validation": "reverse validation on the source labs (AUC)",
    "forward_validation": "forward validation from the source labs (AUC)",
    "overturned_share": "overturned of what production is confident of",
    "overturn_support": "support of overturned pixels by their appearance",
    "domain_separability": "domain separability (AUC)",
    "dice": "Dice",
    "boundary_dice": "boundary Dice (2 px)",
    "object_f1": "object F1",
    "object_dice": "object Dice",
    "aji": "aggregated Jaccard index",
    "f1_at_50": "object F1 at IoU 0.5",
    "mean_f1": "object F1, mean over IoU 0.5 to 0.95",
    "panoptic_quality": "panoptic quality",
    "count_error": "error of the number of objects",
}
_OBJECT_METRICS = ("object_f1", "object_dice", "aji", "f1_at_50", "mean_f1", "panoptic_quality", "count_error")
_TRAINING_PARAMS = ("seed", "network.", "train.", "adapt.")

_Value = float | ConfidenceInterval | None

Scores = Mapping[str, Mapping[str, tuple[float | None, float | None]]]
"""Mean scores on labelled images: lab → metric → (this version, production)."""


@dataclass(frozen=True)
class TrainedModel:
    """What is known of a version before it is evaluated.

    Attributes:
        method: Training method.
        network: Architecture, classes, pixel size and origin of the encoder weights.
        source: The labelled labs that it was trained on.
        digests: DVC's hash of each lab's dataset.
        run_params: Parameters and tags of the run that trained it; the parameters of the training are shown.
        target: The labs that it was adapted to.
        run_id: ID of the run that trained it.
        commit: Commit of the code.
    """

    method: str
    network: NetworkConfig
    source: Sequence[LabDataset]
    digests: Mapping[str, str]
    run_params: Mapping[str, str]
    target: Sequence[LabDataset] = ()
    run_id: str | None = None
    commit: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """What was found when a version was compared with the one in production.

    Attributes:
        candidate: Evidence on this version.
        production: Evidence on the version in production, on the same images; None where there is none.
        decision: The gate's decision.
        scores: Mean scores on labelled images by lab and metric, of this version and of production.
        panels: Paths of images among the run's artifacts, which MLflow's page shows.
        page: Address of the page of the decision, relative to any page of MLflow.
    """

    candidate: Evidence
    production: Evidence | None
    decision: Decision | None
    scores: Scores = field(default_factory=dict)
    panels: Sequence[str] = ()
    page: str | None = None


def model_card(trained: TrainedModel, evaluation: Evaluation | None = None) -> str:
    """Write a model card in Markdown.

    The first line is plain text: lists of versions show only that line. The decision follows: MLflow's descriptions
    have at most 5000 characters, and the registry shortens a card at its end.

    Args:
        trained: The version.
        evaluation: Its evaluation; None before it.
    """
    candidate = evaluation.candidate if evaluation else None
    environment = Environment(  # nosec B701 (Markdown: `_finalize` escapes it)
        loader=PackageLoader("microseg.registry", "."),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        finalize=_finalize,
    )
    environment.filters |= {"measurement": format_measurement, "code": _code}
    return environment.get_template("model_card.md.j2").render(
        **vars(trained) | {"source": list(trained.source), "target": list(trained.target)},
        model=MODEL_NAME,
        decision=evaluation.decision if evaluation else None,
        panels=evaluation.panels if evaluation else (),
        page=evaluation.page if evaluation else None,
        dice=[f"{lab} {value:.3f}" for lab, value in sorted(candidate.source_dice.items())] if candidate else [],
        measurements=_measurements(evaluation) if evaluation else [],
        params={name: value for name, value in sorted(trained.run_params.items()) if name.startswith(_TRAINING_PARAMS)},
    )


def measurement_name(key: str) -> str:
    """Return the name of a measurement in tables and pages, such as "Dice, gland" for ``dice_gland``."""
    if key in _NAMES:
        return _NAMES[key]
    for prefix in ("dice", *_OBJECT_METRICS):
        if key.startswith(f"{prefix}_"):
            return f"{_NAMES[prefix]}, {key.removeprefix(f'{prefix}_')}"
    return key.replace("_", " ")


def fit_description(card: str) -> str:
    """Shorten a model card, at the end of a line, to the length of MLflow's descriptions."""
    if len(card) <= _DESCRIPTION_LENGTH:
        return card
    note = "\n\n(Shortened: the whole card is `model_card.md` among the files of this version.)"
    return re.sub(r"[^\n]*\Z", "", card[: _DESCRIPTION_LENGTH - len(note)]).rstrip() + note


def headline(card: str) -> str:
    """Return the first line of a model card: a logged model's page shows no more above the metrics."""
    return card.partition("\n")[0]


def _measurements(evaluation: Evaluation) -> list[tuple[str, _Value, _Value]]:
    """The rows of the table: measurement, this version, production."""
    candidate, production = evaluation.candidate, evaluation.production or Evidence()
    rows: list[tuple[str, _Value, _Value]] = [
        (f"{lab}, held-out: Dice", candidate.source_dice.get(lab), production.source_dice.get(lab))
        for lab in sorted(candidate.source_dice.keys() | production.source_dice.keys())
    ]
    if candidate.target_dice is not None or production.target_dice is not None:
        rows.append(("Target lab's masks: Dice", candidate.target_dice, production.target_dice))
    if candidate.target_gain is not None:
        rows.append(("Target lab's masks: gain of Dice", candidate.target_gain, None))
    rows += [
        (f"{lab}: {measurement_name(metric)}", new, old)
        for lab, metrics in evaluation.scores.items()
        for metric, (new, old) in metrics.items()
        if metric in _OBJECT_METRICS
    ]
    rows += [
        (f"Target lab: {measurement_name(name)}", value, production.label_free.get(name))
        for name, value in candidate.label_free.items()
    ]
    return rows


def _finalize(value: object) -> object:
    """Escape each text in the template, whatever it is: it may come from a lab or from another client of MLflow."""
    return markdown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _code(text: str) -> Markup:
    """A text as code; backslashes do not escape there."""
    return Markup(f"`{printable(text).replace('`', chr(39)).replace('|', '/')}`")  # nosec B704 (Markdown)


def format_measurement(value: float | ConfidenceInterval | None) -> str:
    """Format a measurement for tables and pages; a dash if it is unknown."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
