"""The HTML page of the gate's decision on a candidate, for the person who decides: one file, without network."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from microseg.evaluation.comparison import Comparison
from microseg.files import write_text_file
from microseg.outputs.colors import Color, class_color
from microseg.registry.decision import ACCEPTED, MET, NOT_MET, REFUSED, UNCLEAR, Decision
from microseg.registry.model_card import format_measurement
from microseg.registry.version import production_of
from microseg.report.criteria import criteria
from microseg.report.effects import lab_effects
from microseg.report.pictures import Picture
from microseg.report.study import read_study
from microseg.report.templates import load_template

__all__ = ["Purpose", "verdict_sentence", "write_decision_page"]

_CHANGES: tuple[Color, ...] = ((0, 114, 178), (213, 94, 0), (240, 228, 66))
"""Of pixels that only the candidate marks, that only production marks, and to which they give different classes: Okabe
and Ito's blue, vermilion and yellow."""

_RULES = {
    "source_dice": "The other labs keep their quality",
    "source_f1": "In the other labs single objects are still found",
    "initial_dice": "The first model is good enough",
    "target_gain": "It is better on outlines that people drew in this lab",
    "label_free": "It gives the same answer twice, and its outlines follow the stain",
    "forward_validation": "It marks what people marked in the other labs",
    "foreground_change": "It marks about as much of the area as production",
    "foreground_share": "It marks about as much of the area as people did in the other labs",
    "lost_labs": "No lab is lost",
}
_WORDS = {MET: ("met", "good"), NOT_MET: ("not met", "bad"), UNCLEAR: ("cannot tell", "open")}


@dataclass(frozen=True)
class Purpose:
    """What a candidate is for.

    Args:
        classes: Names of the classes, background first.
        base: Version that it was adapted from; None if it was trained anew.
        labs: Labs that it was trained on or adapted to.
        lost: Labs that production was trained on or adapted to, and the candidate was not.
        scope: Lab for whose images alone it would be promoted; None for all labs.
    """

    classes: tuple[str, ...]
    base: str | None = None
    labs: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    scope: str | None = None


def write_decision_page(
    decision: Decision, comparison: Comparison, purpose: Purpose, pictures: Sequence[Picture], path: Path
) -> None:
    """Write the page as one HTML file without external resources.

    Args:
        decision: The decision, with the numbers of both versions.
        comparison: The measurements.
        purpose: What the candidate is for.
        pictures: Pictures of the target lab with both masks, the most uncertain first.
        path: File of the page.
    """
    old = comparison.production.label_free if comparison.production else {}
    masks_decide = comparison.candidate.target_gain is not None
    template = load_template("decision.html.j2", number=format_measurement, percent=_percent)
    page = template.render(
        decision=decision,
        comparison=comparison,
        purpose=_purpose_sentence(decision, comparison, purpose),
        verdict=verdict_sentence(decision),
        next_step=_next_step(decision, purpose.scope),
        effects=lab_effects(decision, comparison, labs=purpose.labs, lost=purpose.lost, scope=purpose.scope),
        pictures=pictures,
        picture_data=[it.model_dump() for it in pictures],
        sides=_sides(decision),
        classes=purpose.classes,
        colors=[class_color(index) for index in range(len(purpose.classes))],
        changes=_CHANGES,
        names=_names(comparison, pictures),
        criteria=[] if masks_decide or not comparison.target else criteria(comparison.candidate.label_free, old),
        study_size=len(read_study()),
        rules=[_rule(*(result.rule, result.outcome, result.message)) for result in decision.rules],
        numbers=_numbers(comparison),
    )
    write_text_file(path, page)


def verdict_sentence(decision: Decision) -> str:
    """The decision in one plain sentence."""
    new, old = decision.version, decision.production_version
    instead = f"replace version {old}, which is in production" if old else "become the first version in production"
    if decision.verdict == ACCEPTED:
        return f"The automatic check found nothing against it: version {new} may {instead}."
    failed = [_title(result.rule) for result in decision.rules if result.outcome == NOT_MET]
    if decision.verdict == REFUSED:
        return f"The automatic check refuses it. Not met: {'; '.join(dict.fromkeys(failed))}."
    better = f"is better than version {old}, which is in production" if old else "is good enough for a first version"
    return f"The automatic check cannot tell whether version {new} {better}: a person must look."


def _next_step(decision: Decision, scope: str | None) -> str:
    old = decision.production_version
    stays = f"version {old} stays in production" if old else "no version goes into production"
    if decision.verdict == REFUSED:
        option = f" --lab {scope}" if scope else ""
        return (
            f"You need to do nothing: {stays}. To promote it all the same, run microseg promote {decision.version}"
            f"{option} --override REASON."
        )
    how = f"set the alias {production_of(scope)} on version {decision.version} in MLflow"
    convinced = "convince you, too" if decision.verdict == ACCEPTED else "show that it is better"
    return f"If the pictures {convinced}: {how}. Otherwise do nothing: {stays}."


def _purpose_sentence(decision: Decision, comparison: Comparison, purpose: Purpose) -> str:
    what = f"It marks {_listed(purpose.classes[1:])} in images"
    if comparison.target is None:
        return f"{what} of {_listed(purpose.labs)}, and was trained on outlines that people drew there."
    images = comparison.candidate.label_free.get("images")
    count = f" ({images} images evaluated)" if images else ""
    start = f"Version {decision.version} was made from version {purpose.base}" if purpose.base else "It was made"
    lacks = "" if comparison.candidate.target_gain else ", without outlines drawn by people there"
    return f"{start} for images of {comparison.target}{count}{lacks}. {what}."


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names) or "nothing"


def _sides(decision: Decision) -> list[tuple[str, str]]:
    candidate = ("candidate", f"Candidate (version {decision.version})")
    if decision.production_version is None:
        return [("image", "Image"), candidate]
    return [
        ("production", f"Production (version {decision.production_version})"),
        candidate,
        ("difference", "Difference"),
    ]


def _names(comparison: Comparison, pictures: Sequence[Picture]) -> list[tuple[str, float, int | None]]:
    """All evaluated images, the most uncertain first, with the number of their picture."""
    uncertainty = {**comparison.uncertainty, **{it.name: it.uncertainty for it in pictures}}
    numbers = {it.name: number for number, it in enumerate(pictures, 1)}
    return [
        (name, uncertainty[name], numbers.get(name)) for name in sorted(uncertainty, key=lambda it: -uncertainty[it])
    ]


def _rule(rule: str, outcome: str, message: str) -> tuple[str, str, str, str]:
    word, css = _WORDS.get(outcome, (outcome, "open"))
    return _title(rule), word, css, message


def _title(rule: str) -> str:
    name, _, lab = rule.partition("/")
    title = _RULES.get(name, name.replace("_", " "))
    return f"{title} ({lab})" if lab else title


def _numbers(comparison: Comparison) -> list[tuple[str, list[tuple[str, float | None, float | None]]]]:
    """The measurements of each lab: name, candidate, production."""
    of_lab: dict[str, list[tuple[str, float | None, float | None]]] = {}
    for name, new, old in comparison.rows():
        lab, _, measurement = name.partition(": ")
        of_lab.setdefault(lab, []).append((measurement, new, old))
    return list(of_lab.items())


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
