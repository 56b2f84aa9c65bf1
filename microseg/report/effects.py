"""What promoting a candidate changes for each lab: gain, loss, unchanged, or unknown."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from microseg.evaluation.comparison import Comparison
from microseg.registry.decision import ACCEPTED, NEEDS_REVIEW, Decision

__all__ = ["Effect", "lab_effects"]

Kind = Literal["gain", "likely gain", "unchanged", "unknown", "likely loss", "loss"]

_CHANGE: Final = 0.005  # Dice; a smaller change is none
_NOTHING = "nothing was measured there"


@dataclass(frozen=True)
class Effect:
    """What promoting changes for a lab.

    Args:
        lab: Name of the lab.
        kind: In a word.
        sentence: What is known.
    """

    lab: str
    kind: Kind
    sentence: str


def lab_effects(
    decision: Decision,
    comparison: Comparison,
    *,
    labs: Sequence[str] = (),
    lost: Sequence[str] = (),
    scope: str | None = None,
) -> list[Effect]:
    """List the effects, the target lab first.

    Args:
        decision: The gate's decision.
        comparison: The measurements.
        labs: Labs that the candidate was trained on or adapted to.
        lost: Labs that production was trained on or adapted to, and the candidate was not.
        scope: Lab for whose images alone it would be promoted; None for all labs.
    """
    effects = [] if comparison.target is None else [_target_effect(decision, comparison)]
    done = {comparison.target}
    old_dice = comparison.production.source_dice if comparison.production else {}
    for lab in sorted(comparison.candidate.source_dice.keys() | old_dice.keys()):
        if lab not in done:
            effects.append(_measured(lab, comparison.candidate.source_dice.get(lab), old_dice.get(lab), decision))
            done.add(lab)
    for lab in sorted(set(labs) - done - set(lost)):
        effects.append(Effect(lab, "unknown", f"The candidate was adapted to it as well; {_NOTHING}."))
    for lab in sorted(set(lost) - done):
        effects.append(
            Effect(lab, "likely loss", f"Production was made for it, too, and the candidate was not; {_NOTHING}.")
        )
    if scope is None:
        return effects
    kept = "Nothing changes: the candidate would be used for images of {scope} only."
    return [it if it.lab == scope else Effect(it.lab, "unchanged", kept.format(scope=scope)) for it in effects]


def _measured(lab: str, new: float | None, old: float | None, decision: Decision) -> Effect:
    first = decision.production_version is None
    if new is None or math.isnan(new) or (not first and (old is None or math.isnan(old))):
        return Effect(lab, "unknown", "Its overlap with outlines drawn by people is not known for both versions.")
    if old is None:
        return Effect(lab, "gain", f"First model: {_percent(new)} overlap with outlines that people drew there.")
    kind: Kind = "gain" if new - old >= _CHANGE else "loss" if old - new >= _CHANGE else "unchanged"
    return Effect(lab, kind, f"Overlap with outlines that people drew there: {_percent(old)} → {_percent(new)}.")


def _target_effect(decision: Decision, comparison: Comparison) -> Effect:
    lab, gain = comparison.target or "", comparison.candidate.target_gain
    if gain is not None and all(math.isfinite(it) for it in (gain.value, gain.low, gain.high)):
        kind: Kind = "gain" if gain.low > 0 else "loss" if gain.high < 0 else "unknown"
        sentence = (
            f"Overlap with outlines that people drew there changes by {_points(gain.value)} (95 % sure: between "
            f"{_points(gain.low)} and {_points(gain.high)})."
        )
        return Effect(lab, kind, sentence)
    if decision.production_version is None:
        return Effect(lab, "unknown", "There is nothing in production to compare with.")
    without = "No outlines of this lab were available, so this is indirect evidence:"
    if decision.verdict == ACCEPTED:
        return Effect(lab, "likely gain", f"{without} the checks below speak for the candidate.")
    if decision.verdict == NEEDS_REVIEW:
        return Effect(lab, "unknown", f"{without} the checks below cannot tell. Please look at the pictures.")
    failed = any(result.outcome == "not met" and "/" not in result.rule for result in decision.rules)
    if failed:
        return Effect(lab, "likely loss", f"{without} the checks below speak against the candidate.")
    return Effect(lab, "unknown", f"{without} no check speaks against it here; it was refused for another lab.")


def _percent(dice: float) -> str:
    return f"{100 * dice:.1f} %"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}".replace("-", "−") + " percentage points"
