"""The promotion gate: may a candidate replace the production model? A pure function of the evidence.

Each rule is met, not met or unclear. A candidate with a rule that is not met is refused; otherwise, with one that is
unclear, the gate cannot tell, and a person must look; otherwise the candidate is accepted.

The loss of Dice on the source labs is measured, and that of object F1 where objects are numbered. On a target lab
without masks there is only label-free evidence: augmentation consistency must not fall; where it falls and
stain-explained variance does not, it is unclear. Both can be wrong together where the lab has far fewer or far more
objects than the source labs: a foreground share far from production's, or from the expected one, is unclear, whatever
they say, and so is a loss of forward validation, which depends neither on the class balance nor on features that were
adapted. If the target lab has masks of enough slides, the Dice gained on these decides instead, by its confidence
interval: a gain that cannot be distinguished from a loss is refused. A segmentation with almost no foreground, or
almost nothing else, is always refused.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeGuard

from microseg.config.params import GateSettings
from microseg.registry.decision import (
    ACCEPTED,
    MET,
    NEEDS_REVIEW,
    NOT_MET,
    REFUSED,
    UNCLEAR,
    Decision,
    Outcome,
    RuleResult,
)
from microseg.registry.evidence import Evidence

__all__ = ["decide"]

_TOLERANCE = 1e-9  # so that 0.80 − 0.78 does not exceed 0.02


def decide(
    candidate: Evidence, production: Evidence | None, policy: GateSettings, *, lost_labs: Sequence[str] = ()
) -> Decision:
    """Accept or refuse a candidate, or state that a person must look.

    Missing, non-finite and impossible values are refused: missing evidence never counts in favor of a candidate.

    Args:
        candidate: Evidence on the candidate.
        production: Evidence on the version in production, measured on the same images; None if there is none yet.
        policy: The thresholds.
        lost_labs: Labs that production was trained on or adapted to, and the candidate was not.

    Returns:
        The decision with the result of each rule. A known Dice gain on the target lab's masks replaces all label-free
        evidence but that of a collapse.
    """
    if production is None:
        results = tuple(_initial_dice(candidate, policy))
    else:
        decisive = _LABEL_FREE_RULES if candidate.target_gain is None else (_target_gain,)
        rules = (_source_dice, _source_f1, *decisive, _foreground_share)
        results = tuple(result for rule in rules for result in rule(candidate, production, policy))
        if lost_labs:
            results += (_lost_labs(lost_labs),)
    outcomes = {result.outcome for result in results}
    return Decision(REFUSED if NOT_MET in outcomes else NEEDS_REVIEW if UNCLEAR in outcomes else ACCEPTED, results)


def _initial_dice(candidate: Evidence, policy: GateSettings) -> Iterator[RuleResult]:
    if not candidate.source_dice:
        yield _NO_SOURCE_LABS
    for lab, dice in sorted(candidate.source_dice.items()):
        message = (
            f"On the held-out images of {lab} the first model has a Dice of {_format(dice)}; "
            f"at least {policy.min_initial_dice:.3f} is required."
        )
        met = _is_fraction(dice) and dice >= policy.min_initial_dice - _TOLERANCE
        yield RuleResult(_met(met), f"initial_dice/{lab}", message)


def _lost_labs(labs: Sequence[str]) -> RuleResult:
    names = ", ".join(labs)
    message = (
        f"Production was trained on, or adapted to, {names}, and this candidate was not: promoting it would lose "
        f"{names}. Adapt from production instead (microseg adapt LAB), which keeps all labs, or promote it for its lab "
        "only."
    )
    return RuleResult(UNCLEAR, "lost_labs", message)


_NO_SOURCE_LABS = RuleResult(
    NOT_MET, "source_dice", "No Dice of a source lab is known; evaluate on the held-out images of at least one lab."
)


def _source_dice(candidate: Evidence, production: Evidence, policy: GateSettings) -> Iterator[RuleResult]:
    """Dice on the held-out images of each source lab is kept."""
    new, old = candidate.source_dice, production.source_dice
    if not new and not old:
        yield _NO_SOURCE_LABS
    yield from _kept("source_dice", "Dice", new, old, policy.max_source_loss)


def _source_f1(candidate: Evidence, production: Evidence, policy: GateSettings) -> Iterator[RuleResult]:
    """Object F1 on the held-out images of each source lab with numbered objects is kept: Dice does not see that objects
    which touch are no longer told apart.
    """
    new, old = candidate.source_f1, production.source_f1
    yield from _kept("source_f1", "object F1 at IoU 0.5", new, old, policy.max_source_f1_loss)


def _kept(
    rule: str, measure: str, new: Mapping[str, float], old: Mapping[str, float], most: float
) -> Iterator[RuleResult]:
    """A measure on the held-out images of each lab loses at most so much."""
    for lab in sorted(new.keys() | old.keys()):
        after, before = new.get(lab), old.get(lab)
        if not (_is_fraction(after) and _is_fraction(before)):
            message = (
                f"On the held-out images of {lab} {measure} is {_format(after)} for the candidate and "
                f"{_format(before)} for production; both are required. Evaluate both on this lab."
            )
            yield RuleResult(NOT_MET, f"{rule}/{lab}", message)
            continue
        loss = before - after
        change = f"{'loses' if loss > 0 else 'gains'} {abs(loss):.3f}"
        message = (
            f"On the held-out images of {lab} the candidate {change} {measure} ({before:.3f} to {after:.3f}); "
            f"a loss of up to {most:.3f} is allowed."
        )
        yield RuleResult(_met(loss <= most + _TOLERANCE), f"{rule}/{lab}", message)


def _target_gain(candidate: Evidence, _production: Evidence, policy: GateSettings) -> Iterator[RuleResult]:
    """Dice on the target lab's masks is gained, where there are enough of them."""
    gain = candidate.target_gain
    if gain is None:
        return
    if not all(-1 - _TOLERANCE <= number <= 1 + _TOLERANCE for number in (gain.value, gain.low, gain.high)):  # or NaN
        message = (
            f"On the target lab's masks the candidate's gain of Dice is {gain}; a value between -1 and 1 is required. "
            "Evaluate both versions on these masks."
        )
        yield RuleResult(NOT_MET, "target_gain", message)
        return
    enough = gain.value >= policy.min_target_gain - _TOLERANCE
    certain = gain.low >= -policy.max_target_loss - _TOLERANCE
    message = (
        f"On the target lab's masks the candidate's Dice is higher than production's by {gain}; "
        f"{_required(policy.min_target_gain)}, and the interval must exclude a loss of more than "
        f"{policy.max_target_loss:.3f}{'' if certain or not enough else ': more masks are needed'}."
    )
    yield RuleResult(_met(enough and certain), "target_gain", message)


def _label_free(candidate: Evidence, production: Evidence, policy: GateSettings) -> Iterator[RuleResult]:
    """The label-free criteria on the target lab do not get worse; it is unclear where they contradict each other."""
    texts: list[str] = []
    gained: list[bool] = []
    for name, text in (
        ("augmentation_consistency", "augmentation consistency"),
        ("stain_explained_variance", "stain-explained variance"),
    ):
        new, old = candidate.label_free.get(name), production.label_free.get(name)
        if _is_fraction(new) and _is_fraction(old):
            gained.append(bool(new - old >= policy.min_criterion_gain - _TOLERANCE))
        texts.append(f"{text} is {_percent(new)} (production: {_percent(old)})")
    message = (
        f"On the target lab {' and '.join(texts)}. For the first {_required(policy.min_criterion_gain)}; where it "
        "falls short, the second decides whether a person must look."
    )
    if len(gained) < len(texts):
        yield RuleResult(NOT_MET, "label_free", f"{message} All four values are required. Evaluate both on this lab.")
        return
    consistent, explained = gained
    if consistent or not explained:
        yield RuleResult(_met(consistent), "label_free", message)
    else:
        message += " The two contradict each other. Look at both side by side: which one follows the objects?"
        yield RuleResult(UNCLEAR, "label_free", message)


def _foreground_change(candidate: Evidence, production: Evidence, policy: GateSettings) -> Iterator[RuleResult]:
    """The foreground share is not far from production's: then the label-free criteria can be wrong together."""
    new, old = (evidence.label_free.get("foreground_share") for evidence in (candidate, production))
    shares = f"The candidate marks {_percent(new)} of the target lab's images as foreground, production {_percent(old)}"
    if not (_is_fraction(new) and _is_fraction(old)):
        yield RuleResult(NOT_MET, "foreground_change", f"{shares}; both are required. Evaluate both on this lab.")
        return
    factor, most = max(_factor(new, old), _factor(1 - new, 1 - old)), policy.max_foreground_change
    if factor <= most * (1 + _TOLERANCE):
        message = f"{shares}: the larger change, of foreground or background, is {factor:.2f}-fold; up to {most:g}-fold"
        yield RuleResult(MET, "foreground_change", f"{message} the other rules decide.")
        return
    message = (
        f"{shares}. Above a {most:g}-fold change of foreground or background label-free criteria cannot tell which is "
        "right. Look at both side by side: "
    )
    if new > old:
        message += "does the candidate find objects that production misses, or does it mark too much?"
    else:
        message += "does the candidate leave out what production marks wrongly, or does it miss objects?"
    yield RuleResult(UNCLEAR, "foreground_change", message)


def _forward_validation(candidate: Evidence, production: Evidence, policy: GateSettings) -> Iterator[RuleResult]:
    """What the source labs' masks teach about pixels agrees with the predictions as well as with production's."""
    name = "forward_validation"
    new, old = (evidence.label_free.get(name) for evidence in (candidate, production))
    if new is None and old is None:
        return
    message = (
        "A classifier of pixels, fitted to the source labs' masks, separates the classes predicted on the target lab: "
        f"its area under the ROC curve is {_format(new)} for the candidate, {_format(old)} for production"
    )
    if not (_is_fraction(new) and _is_fraction(old)):
        yield RuleResult(UNCLEAR, name, f"{message}; both are required. Evaluate both on this lab.")
        return
    if old < policy.min_forward_validation - _TOLERANCE:
        message += (
            f". Production's is below {policy.min_forward_validation:.3f}: pixels do not tell the classes apart here, "
            "and it does not count."
        )
        yield RuleResult(MET, name, message)
        return
    message += f"; a loss of up to {policy.max_forward_validation_loss:.3f} is allowed."
    if old - new <= policy.max_forward_validation_loss + _TOLERANCE:
        yield RuleResult(MET, name, message)
        return
    message += (
        " Where it is larger, the candidate may mark something else than the source labs do, and the other label-free "
        "criteria do not see that. Look at both side by side: does it mark the right objects, and no more than these?"
    )
    yield RuleResult(UNCLEAR, name, message)


def _foreground_share(candidate: Evidence, production: Evidence, policy: GateSettings) -> Iterator[RuleResult]:
    """The segmentation has not collapsed, and its foreground share is not far from that of the source labs."""
    share, old = (evidence.label_free.get("foreground_share") for evidence in (candidate, production))
    expected = candidate.label_free.get("expected_foreground_share")
    if not (_is_fraction(share) and _is_fraction(expected) and expected > 0):
        message = (
            f"The candidate's foreground share on the target lab is {_format(share)}, the expected one "
            f"{_format(expected)}; both are required, and the expected one must be above 0."
        )
        yield RuleResult(NOT_MET, "foreground_share", message)
        return
    message = (
        f"The candidate's foreground share on the target lab is {share:.1%}; from the source labs' masks "
        f"{expected:.1%} is expected."
    )
    ends = policy.collapse_share, 1 - policy.collapse_share
    if not ends[0] - _TOLERANCE <= share <= ends[1] + _TOLERANCE:
        message += f" The segmentation has collapsed: a share between {ends[0]:.1%} and {ends[1]:.1%} is required."
        yield RuleResult(NOT_MET, "foreground_share", message)
        return
    low, high = policy.min_foreground_ratio, policy.max_foreground_ratio
    near = low - _TOLERANCE <= share / expected <= high + _TOLERANCE
    message += f" The ratio is {share / expected:.2f}; a person must look at one outside {low:g} to {high:g}"
    if near or candidate.target_gain is not None:
        yield RuleResult(MET, "foreground_share", message + (", unless masks decide." if not near else "."))
        return
    kind, fault = ("fewer", "are objects missed") if share < expected else ("more", "is too much marked")
    if _is_fraction(old) and (old < low * expected if share < expected else old > high * expected):
        message += (
            f". Production's is {old:.1%}: this lab seems to have far {kind} objects than the source labs, whose share "
            f"says nothing then. Look at the segmentations: {fault}?"
        )
    else:
        message += f". Production's is {_percent(old)}. Look at both side by side: {fault}?"
    yield RuleResult(UNCLEAR, "foreground_share", message)


_Rule = Callable[[Evidence, Evidence, GateSettings], Iterator[RuleResult]]

_LABEL_FREE_RULES: tuple[_Rule, ...] = (_label_free, _forward_validation, _foreground_change)
"""Rules on a target lab without enough masks: of the evidence on candidate and production, each gives its results."""


def _met(condition: object) -> Outcome:
    return MET if condition else NOT_MET


def _factor(one: float, other: float) -> float:
    """By which of two shares the larger exceeds the other: 1 if both are equal, infinite if one is 0."""
    low, high = sorted((max(one, 0.0), max(other, 0.0)))
    return 1.0 if high <= _TOLERANCE else high / low if low > 0 else math.inf


def _is_fraction(value: float | None) -> TypeGuard[float]:
    return value is not None and -_TOLERANCE <= value <= 1 + _TOLERANCE  # False for NaN


def _percent(value: float | None) -> str:
    return f"{value:.1%}" if _is_fraction(value) else _format(value)


def _required(gain: float) -> str:
    if gain == 0:
        return "no loss is allowed"
    return f"a gain of at least {gain:.3f} is required" if gain > 0 else f"a loss of up to {-gain:.3f} is allowed"


def _format(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "unknown"
    return f"{value:.3f}" if _is_fraction(value) else f"{value:g}, which is impossible"
