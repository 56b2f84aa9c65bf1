"""The model card: use, data, training, evaluation and the gate's decision of a model version."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from microseg.models.config import NetworkConfig
from microseg.registry.gate import Decision, Evidence
from microseg.registry.version import MODEL_NAME, PREVIOUS, PRODUCTION

__all__ = ["ModelCardLab", "Scores", "fit_description", "headline", "measurement_name", "model_card"]

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
    "domain_separability": "domain separability (AUC)",
    "dice": "Dice",
    "boundary_dice": "boundary Dice (2 px)",
    "object_f1": "object F1",
    "object_dice": "object Dice",
    "aji": "aggregated Jaccard index",
}
_OBJECT_METRICS = ("object_f1", "object_dice", "aji")
_TRAINING_PARAMS = ("seed", "network.", "train.", "adapt.")

Scores = Mapping[str, Mapping[str, tuple[float | None, float | None]]]
"""Mean scores on labelled images: lab → metric → (this version, production)."""


@dataclass(frozen=True)
class ModelCardLab:
    """A lab in a model card.

    Args:
        lab: Name of the lab.
        role: ``"source"`` or ``"target"``.
        digest: DVC's hash of its dataset.
        stain: Such as ``"H&E"``.
        images: Number of images.
        labelled: Number of images with a mask.
    """

    lab: str
    role: str
    digest: str
    stain: str
    images: int
    labelled: int


def model_card(
    *,
    method: str,
    network: NetworkConfig,
    labs: Sequence[ModelCardLab],
    run_params: Mapping[str, str],
    candidate: Evidence | None = None,
    production: Evidence | None = None,
    scores: Scores | None = None,
    decision: Decision | None = None,
    panels: Sequence[str] = (),
    run_id: str | None = None,
    commit: str | None = None,
) -> str:
    """Write a model card in Markdown.

    The first line is plain text: lists of versions show only that line. The decision follows: MLflow's descriptions
    have at most 5000 characters, and the registry shortens a card at its end.

    Args:
        method: Training method.
        network: Architecture, classes, pixel size and origin of the encoder weights.
        labs: The labs it was trained on and adapted to.
        run_params: Parameters and tags of the run that trained it; the parameters of the training are shown.
        candidate: Evidence on this version, once evaluated.
        production: Evidence on the version in production, on the same images.
        scores: Mean scores on labelled images by lab and metric, of this version and of production.
        decision: The gate's decision, once evaluated.
        panels: Paths of images among the run's artifacts, which MLflow's page shows.
        run_id: ID of the run that trained it.
        commit: Commit of the code.
    """
    number = decision.production_version if decision else None
    sections = [
        _summary(method, labs, candidate, decision),
        _gate(decision),
        _panels(panels, run_id),
        _performance(candidate, production, scores or {}, f"version {number} (production)" if number else "production"),
        _intended_use(network, labs),
        _data(labs),
        _training(method, network, run_params),
        f"## Lineage\n- Run: {run_id or 'unknown'}\n- Code: {commit or 'unknown'}\n- Datasets: in the table above",
        _loading(),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


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


def _summary(method: str, labs: Sequence[ModelCardLab], candidate: Evidence | None, decision: Decision | None) -> str:
    targets = [lab.lab for lab in labs if lab.role == "target"]
    origin = f"Adapted to {', '.join(targets)}" if targets else f"Trained on {', '.join(lab.lab for lab in labs)}"
    dice = ", ".join(f"{lab} {value:.3f}" for lab, value in sorted(candidate.source_dice.items())) if candidate else ""
    status = {None: "gate not evaluated", True: "accepted by the gate", False: "REFUSED by the gate"}
    parts = [
        f"{origin} ({method})",
        status[None if decision is None else decision.accepted],
        f"Dice {dice}" if dice else "no held-out Dice",
    ]
    return " · ".join(parts) + "."


def _intended_use(network: NetworkConfig, labs: Sequence[ModelCardLab]) -> str:
    (background, *foreground), mpp = network.classes, network.mpp
    scale = "at an unknown pixel size" if mpp is None else f"at {mpp:g} microns per pixel"
    resolution = (
        "images should have the magnification of its training images"
        if mpp is None
        else "images with a known pixel size are rescaled to it"
    )
    stains = ", ".join(sorted({lab.stain for lab in labs})) or "unknown"
    return f"""## Description
A segmentation model for histopathology images (dual-adaptive pyramid network). It predicts the probabilities of
{len(network.classes)} classes for each pixel: {background} (class 0), {", ".join(foreground)}.
It works {scale}; {resolution}.

## Intended use
Research: outlining and measuring structures in batches of images of the labs below, and pre-annotation.

## Limitations
- Not a medical device; not for diagnosis. A pathologist should check samples of its output.
- Stains in the training data: {stains}. For other stains, scanners or tissues, adapt it first.
- For a lab without masks no Dice is measured: the evidence there is indirect."""


def _data(labs: Sequence[ModelCardLab]) -> str:
    rows = [
        f"| {lab.lab} | {lab.role} | {_cell(lab.stain)} | {lab.images} | {lab.labelled} | `{lab.digest}` |"
        for lab in labs
    ]
    head = [
        "## Data",
        "| lab | role | stain | images | with mask | dataset (DVC) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *rows])


def _training(method: str, network: NetworkConfig, run_params: Mapping[str, str]) -> str:
    weights = network.encoder_weights
    origin = f"{weights.source}, license {weights.license}, SHA-256 `{weights.sha256}`" if weights else "random"
    params = [f"- {name}: {value}" for name, value in sorted(run_params.items()) if name.startswith(_TRAINING_PARAMS)]
    facts = [f"- Method: {method}", f"- Encoder: {network.encoder}", f"- Initial encoder weights: {origin}"]
    return "\n".join(["## Training", *facts, *params])


def _performance(candidate: Evidence | None, production: Evidence | None, scores: Scores, column: str) -> str:
    if candidate is None:
        return ""
    other = production or Evidence()
    rows = [
        (f"{lab}, held-out: Dice", _number(candidate.source_dice.get(lab)), _number(other.source_dice.get(lab)))
        for lab in sorted(candidate.source_dice.keys() | other.source_dice.keys())
    ]
    if candidate.target_dice is not None or other.target_dice is not None:
        rows.append(("Target lab's masks: Dice", str(candidate.target_dice or "–"), str(other.target_dice or "–")))
    if candidate.target_gain is not None:
        rows.append(("Target lab's masks: gain of Dice", str(candidate.target_gain), "–"))
    rows += [
        (f"{lab}: {measurement_name(metric)}", _number(new), _number(old))
        for lab, metrics in scores.items()
        for metric, (new, old) in metrics.items()
        if metric in _OBJECT_METRICS
    ]
    rows += [
        (f"Target lab: {measurement_name(name)}", _number(value), _number(other.label_free.get(name)))
        for name, value in candidate.label_free.items()
    ]
    head = ["## Evaluation", f"| | this version | {column} |", "| --- | --- | --- |"]
    return "\n".join([*head, *(f"| {name} | {new} | {old} |" for name, new, old in rows)])


def _gate(decision: Decision | None) -> str:
    if decision is None:
        return ""
    rows = [f"- {'Passed' if result.passed else '**Failed**'}: {result.message}" for result in decision.rules]
    return "\n".join(["## Gate", "Accepted." if decision.accepted else "**Refused.**", *rows])


def _panels(panels: Sequence[str], run_id: str | None) -> str:
    """Images by URLs relative to MLflow's page, whatever the address of the server."""
    if not panels or run_id is None:
        return ""
    images = [f"![](get-artifact?path={quote(path, safe='')}&run_uuid={run_id})" for path in panels]
    return "\n\n".join(["## Examples of the target lab", *images])


def _loading() -> str:
    return f"""## Loading
```python
from microseg import Segmenter
Segmenter.load("{PRODUCTION}")     # or a version number, or "{PREVIOUS}"
```
Without microseg: `mlflow models serve -m models:/{MODEL_NAME}@{PRODUCTION}` takes float32 tiles (B, 3, T, T) in 0..1
and returns probabilities (B, K, T, T)."""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
