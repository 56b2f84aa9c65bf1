"""The label-free measurements in plain words: what each one is, what it cannot tell, and where it lies in the study."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from microseg.registry.decision import ACCEPTED, NEEDS_REVIEW, REFUSED
from microseg.report.study import StudyModel, change, read_study

__all__ = ["Chart", "Criterion", "Mark", "criteria"]

_ROWS = {ACCEPTED: "accepted", NEEDS_REVIEW: "left to a person", REFUSED: "refused"}
_SHOWN = 0.95  # fraction of the study's changes that the chart has room for; the others are at its ends


@dataclass(frozen=True)
class _Text:
    """What is said about a measurement; the values are filled in."""

    title: str
    sentence: str
    cannot: str
    decides: bool = True
    better: str = "higher"
    axis: str = "change from production to candidate, in percentage points"


_TEXTS: Mapping[str, _Text] = {
    "augmentation_consistency": _Text(
        "Does it give the same answer twice?",
        "Every image was recolored, turned and mirrored, and segmented again: the candidate agrees with its first "
        "answer by {new}, production by {old} (100 %: always the same answer, 0 %: no more than by chance).",
        "A model that makes the same mistake every time agrees with itself, too.",
    ),
    "stain_explained_variance": _Text(
        "Do the outlines follow the stain?",
        "Color and brightness alone explain {new} of what the candidate marks, and {old} of what production marks "
        "(100 %: everything, 0 %: nothing).",
        "Whether it is the right structure: marking everything that is dark scores high, and structures that differ by "
        "their shape and not by their color score low.",
    ),
    "forward_validation": _Text(
        "Does it mark what people marked in the other labs?",
        "What people outlined in the other labs teaches a simple classifier the look of each class; it tells what the "
        "candidate marks here from the rest with {new} success, and what production marks with {old} (50 %: like "
        "tossing a coin).",
        "It sees single pixels with their surroundings and no whole objects; where another stain gives the same "
        "structure another look, it says little.",
    ),
    "foreground_share": _Text(
        "How much of the area does it mark?",
        "The candidate marks {new} of the area, production {old}; in the other labs people marked {expected}.",
        "Whether the right area is marked: a lab may really have more, or fewer, objects than the others.",
        better="",
        axis="area marked, compared with production (×2: twice as much)",
    ),
    "entropy": _Text(
        "How undecided is it?",
        "From 0 % (sure of every pixel) to 100 % (every class is equally likely everywhere), the candidate is at "
        "{new}, production at {old}.",
        "Models can be sure and wrong.",
        decides=False,
        better="lower",
    ),
    "ood_score": _Text(
        "Do the images look like those that it learned from?",
        "The typical distance to the images that the candidate learned from is {new}; to those of production it is "
        "{old}. Above 1 an image looks unlike them.",
        "Images of a familiar look can still be segmented wrongly, and a new kind of object in a familiar stain is not "
        "noticed.",
        decides=False,
        better="lower",
    ),
    "domain_separability": _Text(
        "Does it still see which lab an image comes from?",
        "From what the candidate computes on its way to the outlines, images of this lab are told from those of the "
        "other labs with {new} success, with production {old} (50 %: not at all, 100 %: always).",
        "Whether the outlines are right: labs may differ in what their images show.",
        decides=False,
        better="lower",
    ),
}


@dataclass(frozen=True)
class Mark:
    """A model of the study in a chart.

    Args:
        x: Place on the axis, 0..1.
        y: Place in its row, 0..1.
        outcome: See `StudyModel.outcome`.
    """

    x: float
    y: float
    outcome: str


@dataclass(frozen=True)
class Chart:
    """The models of the study on an axis, in a row for each answer of the gate.

    Args:
        rows: Title and models of each row.
        candidate: Place of the candidate on the axis, 0..1.
        ticks: Place and label of each tick.
        axis: Label of the axis.
        summary: The chart in a sentence.
    """

    rows: Sequence[tuple[str, Sequence[Mark]]]
    candidate: float
    ticks: Sequence[tuple[float, str]]
    axis: str
    summary: str


@dataclass(frozen=True)
class Criterion:
    """A measurement without outlines drawn by people.

    Args:
        name: Its name in tables and files.
        title: The question that it answers.
        sentence: What was measured.
        cannot: What it cannot tell.
        decides: Whether a rule of the gate uses it.
        chart: Where the candidate lies in the study; None where the study has no such measurement.
    """

    name: str
    title: str
    sentence: str
    cannot: str
    decides: bool
    chart: Chart | None


def criteria(new: Mapping[str, float], old: Mapping[str, float]) -> list[Criterion]:
    """Describe the label-free measurements of a candidate and of production.

    Args:
        new: Measurements of the candidate, by name; unknown ones are left out, or NaN.
        old: Those of production.
    """
    found = []
    for name, text in _TEXTS.items():
        if not math.isfinite(value := new.get(name, math.nan)):
            continue
        before = old.get(name, math.nan)
        shown = {"new": _shown(name, value), "old": _shown(name, before)}
        shown["expected"] = _shown(name, new.get("expected_foreground_share", math.nan))
        chart = _chart(name, text, change(name, value, before)) if math.isfinite(before) else None
        found.append(Criterion(name, text.title, text.sentence.format(**shown), text.cannot, text.decides, chart))
    return found


def _shown(name: str, value: float) -> str:
    if not math.isfinite(value):
        return "an unknown value"
    return f"{value:.2f}" if name == "ood_score" else f"{100 * value:.1f} %"


def _chart(name: str, text: _Text, candidate: float) -> Chart | None:
    models = [model for model in read_study() if name in model.changes]
    if not models:
        return None
    changes = sorted(abs(model.changes[name]) for model in models)
    most = max(changes[int(_SHOWN * (len(changes) - 1))], 1.15 * abs(candidate), 1e-6)
    if name == "foreground_share":
        most = min(most, 6.0)

    def place(value: float) -> float:
        return 0.5 + 0.5 * min(1.0, max(-1.0, value / most))

    rows = []
    for verdict, title in _ROWS.items():
        chosen = sorted((it for it in models if it.verdict == verdict), key=lambda it: it.changes[name])
        marks = [Mark(place(it.changes[name]), (0.2, 0.8, 0.5)[n % 3], it.outcome) for n, it in enumerate(chosen)]
        rows.append((title, marks))
    ticks = [(place(value), _tick(name, value)) for value in _ticks(name, most)]
    return Chart(rows, place(candidate), ticks, text.axis, _summary(name, text, candidate, models))


def _summary(name: str, text: _Text, candidate: float, models: Sequence[StudyModel]) -> str:
    """How many models of the study changed at least as far in this direction, and what the masks say of these."""
    up = candidate >= 0
    alike = [it for it in models if (it.changes[name] >= candidate if up else it.changes[name] <= candidate)]
    counts = [sum(it.outcome == outcome for it in alike) for outcome in ("better", "same", "worse")]
    direction = "rose" if up else "fell"
    return (
        f"This value {direction} at least as far in {len(alike)} of the {len(models)} models of the study: {counts[0]} "
        f"of these were really better, {counts[1]} about the same, {counts[2]} really worse"
        f"{f' ({text.better} is meant to be better)' if text.better else ''}."
    )


def _ticks(name: str, most: float) -> list[float]:
    """Round values that divide the axis; of an area, powers of two."""
    if name == "foreground_share":
        step = max(1, math.floor(most / 2))
        return [float(it) for it in range(-2 * step, 2 * step + 1, step) if abs(it) <= most]
    step = 10 ** math.floor(math.log10(most))
    step = next(it for it in (step, step / 2, step / 5) if most / it >= 2)
    return [number * step for number in range(-int(most / step), int(most / step) + 1)][:: 1 if most / step < 4 else 2]


def _tick(name: str, value: float) -> str:
    if name == "foreground_share":
        return "same" if value == 0 else f"{'×' if value > 0 else '÷'}{2 ** abs(value):g}"
    return "0" if abs(value) < 1e-12 else f"{100 * value:+.3g}".replace("-", "−")
