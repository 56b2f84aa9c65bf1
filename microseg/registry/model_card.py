"""The model card: what a version is, for what, on which data, how good, and why it was accepted or refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from microseg.registry.gate import Decision, Evidence
from microseg.registry.version import MODEL_NAME, PREVIOUS, PRODUCTION

__all__ = ["ModelCardLab", "model_card"]

_LABEL_FREE = {
    "stain_explained_variance": "segmentation explained by the stain",
    "augmentation_consistency": "agreement with itself",
    "foreground_share": "share marked as foreground",
    "expected_foreground_share": "share expected from the labels",
    "images": "images of the new lab looked at",
    "ood_score": "distance to the nearest known lab (median; 1 is the limit)",
    "drift_share": "share of images unlike any known lab's",
}


@dataclass(frozen=True)
class ModelCardLab:
    """A lab in a model card.

    Args:
        lab: Its name.
        role: What its images were used for, such as ``"source"`` or ``"target"``.
        digest: DVC's hash of its dataset.
        stain: Such as ``"H&E"``.
        images: How many.
        labelled: How many of them with a mask.
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
    classes: Sequence[str],
    mpp: float | None,
    labs: Sequence[ModelCardLab],
    params: Mapping[str, object],
    candidate: Evidence | None = None,
    production: Evidence | None = None,
    decision: Decision | None = None,
    production_version: int | None = None,
    pictures: Sequence[str] = (),
    run_id: str | None = None,
    commit: str | None = None,
) -> str:
    """Write a model card in Markdown.

    Its first line is plain text: lists of versions show that line alone. The verdict follows: MLflow holds no more than
    5000 characters of a description, and the registry cuts its end.

    Args:
        method: How the model was trained.
        classes: Names of the classes, background first.
        mpp: Microns per pixel at which it was trained; None if unknown.
        labs: The labs whose images it was trained with.
        params: The settings worth telling.
        candidate: Evidence on this version, once evaluated.
        production: Evidence on the version in use at that time, on the same images.
        decision: The gate's verdict, once asked.
        production_version: Number of the version that it was compared with.
        pictures: Images among that run's artifacts, by their paths; MLflow's page shows them.
        run_id: The run that made it.
        commit: Of the code.
    """
    rival = "production" if production_version is None else f"version {production_version} (production)"
    sections = [
        _headline(method, labs, candidate, decision),
        _verdict(decision),
        _pictures(pictures, run_id),
        _performance(candidate, production, rival),
        _intended_use(classes, mpp, labs),
        _data(labs),
        _training(method, params),
        _lineage(run_id, commit),
        _loading(),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _headline(method: str, labs: Sequence[ModelCardLab], candidate: Evidence | None, decision: Decision | None) -> str:
    targets = [lab.lab for lab in labs if lab.role == "target"]
    origin = f"Adapted to {', '.join(targets)}" if targets else f"Trained on {', '.join(lab.lab for lab in labs)}"
    dice = ", ".join(f"{lab} {value:.3f}" for lab, value in sorted(candidate.source_dice.items())) if candidate else ""
    verdict = {None: "not judged yet", True: "accepted by the gate", False: "REFUSED by the gate"}
    parts = [
        f"{origin} ({method})",
        verdict[None if decision is None else decision.accept],
        f"Dice {dice}" if dice else "not evaluated yet",
    ]
    return " · ".join(parts) + "."


def _intended_use(classes: Sequence[str], mpp: float | None, labs: Sequence[ModelCardLab]) -> str:
    background, *foreground = classes
    scale = "at a pixel size that was not stated" if mpp is None else f"at {mpp:g} microns per pixel"
    resolution = (
        "give images of the same magnification as its training images"
        if mpp is None
        else "images with a known pixel size are rescaled to this"
    )
    stains = ", ".join(sorted({lab.stain for lab in labs})) or "unknown"
    return f"""## What it is
A segmenter of histopathology images (dual-adaptive pyramid network). For each pixel it gives the probabilities of
{len(classes)} classes: {background} (class 0), {", ".join(foreground)}. It works {scale}; {resolution}.

## Intended use
Research: outlining and measuring structures in batches of images of the labs below, and pre-annotation.

## Limits
- Not a medical device; not for diagnosis. Have a pathologist look at samples of its output.
- Stains seen in training: {stains}. On other stains, scanners or tissues adapt it first.
- A lab without masks has no measured Dice: evidence there is indirect."""


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


def _training(method: str, params: Mapping[str, object]) -> str:
    rows = [f"- {name}: {value}" for name, value in params.items()]
    return "\n".join(["## Training", f"Method: {method}.", *rows])


def _performance(candidate: Evidence | None, production: Evidence | None, rival: str) -> str:
    if candidate is None:
        return ""
    other = production or Evidence()
    rows = [
        (
            f"Dice, held-out images of {lab}",
            _number(candidate.source_dice.get(lab)),
            _number(other.source_dice.get(lab)),
        )
        for lab in sorted(candidate.source_dice.keys() | other.source_dice.keys())
    ]
    if candidate.target_dice is not None or other.target_dice is not None:
        rows.append(("Dice, the new lab's own masks", str(candidate.target_dice or "–"), str(other.target_dice or "–")))
    if candidate.target_gain is not None:
        rows.append(("Dice gained on the new lab's own masks", str(candidate.target_gain), "–"))
    rows += [
        (f"New lab: {_LABEL_FREE.get(name, name)}", _number(value), _number(other.label_free.get(name)))
        for name, value in candidate.label_free.items()
    ]
    head = ["## Performance", f"| | this version | {rival} |", "| --- | --- | --- |"]
    return "\n".join([*head, *(f"| {name} | {new} | {old} |" for name, new, old in rows)])


def _verdict(decision: Decision | None) -> str:
    if decision is None:
        return ""
    rows = [f"- {'Passed' if reason.passed else '**Refused**'}: {reason.sentence}" for reason in decision.reasons]
    return "\n".join(["## Gate", "Accepted." if decision.accept else "**Refused.**", *rows])


def _pictures(pictures: Sequence[str], run_id: str | None) -> str:
    """By addresses relative to MLflow's page, whatever its server is called."""
    if not pictures or run_id is None:
        return ""
    shown = [f"![](get-artifact?path={quote(path, safe='')}&run_uuid={run_id})" for path in pictures]
    return "\n\n".join(["## On the new lab's images", *shown])


def _lineage(run_id: str | None, commit: str | None) -> str:
    return f"## Lineage\n- Run: {run_id or 'unknown'}\n- Code: {commit or 'unknown'}\n- Datasets: in the table above"


def _loading() -> str:
    return f"""## How to load
```python
from microseg import Segmenter
Segmenter.load("{PRODUCTION}")     # or a version's number, or "{PREVIOUS}"
```
Without microseg: `mlflow models serve -m models:/{MODEL_NAME}@{PRODUCTION}` takes float32 tiles (B, 3, T, T) in 0..1
and gives probabilities (B, K, T, T)."""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
