"""The promotion gate: may a candidate replace the production model? A pure function of numbers.

Dice lost on labelled labs is measured. On a lab without masks there is only label-free evidence, none of which is
always right: there two of three signs must speak for the candidate (how far the stain explains its segmentation, how
far it agrees with itself on changed images, how near its share of foreground is to the one that the labels let
expect), and it must not mark almost nothing or almost everything. Where the new lab sent masks of some slides, the
Dice gained on these decides in place of the signs, by its interval: as few masks as cannot tell a gain from a loss do
not promote.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeGuard

from microseg.config.params import GateSettings

__all__ = ["ConfidenceInterval", "Decision", "Evidence", "RuleResult", "decide"]


_ROUNDING = 1e-9  # so that 0.80 − 0.78 does not exceed 0.02


@dataclass(frozen=True)
class ConfidenceInterval:
    """A value with its bootstrap confidence interval.

    Args:
        value: The estimate.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Evidence:
    """What is known of one model version.

    Args:
        source_dice: Mean Dice (0..1) on the held-out images of each labelled lab.
        target_dice: Dice (0..1) on the new lab, where it sent a few masks; only reported.
        label_free: Evidence on the new lab without masks. The gate reads ``separation`` (0..1, share of the
            segmentation that the stain explains), ``cohen_kappa`` (0..1, with itself on changed images),
            ``foreground_share`` (predicted, 0..1) and ``expected_foreground_share`` (in the labels of the source labs,
            0..1); others are only reported. Counts are whole numbers, also after a way through JSON.
        target_gain: Of the candidate: Dice gained over production on the same masks, image by image (-1..1), where they
            are of enough slides to tell.
    """

    source_dice: Mapping[str, float] = field(default_factory=dict)
    target_dice: ConfidenceInterval | None = None
    label_free: Mapping[str, int | float] = field(default_factory=dict)
    target_gain: ConfidenceInterval | None = None


@dataclass(frozen=True)
class RuleResult:
    """One rule's verdict.

    Args:
        passed: Whether the rule is met.
        rule: Its name, such as ``"source_dice/lab_a"``.
        sentence: The numbers and what was asked, for a reader who did not write the rule.
    """

    passed: bool
    rule: str
    sentence: str


@dataclass(frozen=True)
class Decision:
    """The gate's verdict.

    Args:
        accept: Whether every rule is met.
        reasons: One for each rule that was looked at; never empty.
    """

    accept: bool
    reasons: tuple[RuleResult, ...]

    def __str__(self) -> str:
        return "\n".join(f"{'passed' if reason.passed else 'REFUSED'}: {reason.sentence}" for reason in self.reasons)


def decide(candidate: Evidence, production: Evidence | None, policy: GateSettings) -> Decision:
    """Accept or refuse a candidate.

    Missing, non-finite or impossible numbers refuse: evidence that is not there is never taken as good.

    Args:
        candidate: Evidence on the proposed version.
        production: Evidence on the version in use, measured on the same images; None when there is none yet.
        policy: The thresholds.

    Returns:
        The verdict with its reasons. Where the gain on the new lab's masks is known, it takes the place of the signs;
        the guard against collapse always applies.
    """
    if production is None:
        reasons = _first(candidate, policy)
    else:
        gain = candidate.target_gain
        reasons = (
            *_source_kept(candidate, production, policy),
            _signs(candidate, production, policy) if gain is None else _target_gain(gain, policy),
            _not_collapsed(candidate, policy),
        )
    return Decision(all(reason.passed for reason in reasons), reasons)


def _first(candidate: Evidence, policy: GateSettings) -> tuple[RuleResult, ...]:
    if not candidate.source_dice:
        return (_no_labs(),)
    reasons = []
    for lab, dice in sorted(candidate.source_dice.items()):
        passed = _is_share(dice) and dice >= policy.min_initial_dice - _ROUNDING
        sentence = (
            f"On the held-out images of {lab} the first model reaches Dice {_number(dice)}; "
            f"at least {policy.min_initial_dice:.3f} is asked of a first model."
        )
        reasons.append(RuleResult(bool(passed), f"first_dice/{lab}", sentence))
    return tuple(reasons)


def _source_kept(candidate: Evidence, production: Evidence, policy: GateSettings) -> tuple[RuleResult, ...]:
    labs = sorted(candidate.source_dice.keys() | production.source_dice.keys())
    if not labs:
        return (_no_labs(),)
    reasons = []
    for lab in labs:
        new, old = candidate.source_dice.get(lab), production.source_dice.get(lab)
        rule = f"source_dice/{lab}"
        if not (_is_share(new) and _is_share(old)):
            sentence = (
                f"On the held-out images of {lab} Dice is {_number(new)} for the candidate and {_number(old)} for "
                "production; both must be known to tell whether anything was lost. Evaluate both on this lab."
            )
            reasons.append(RuleResult(False, rule, sentence))
            continue
        loss = old - new
        change = f"loses {loss:.3f}" if loss > 0 else f"gains {-loss:.3f}"
        sentence = (
            f"On the held-out images of {lab} the candidate {change} Dice ({old:.3f} to {new:.3f}); "
            f"a loss of up to {policy.max_source_loss:.3f} is allowed."
        )
        reasons.append(RuleResult(bool(loss <= policy.max_source_loss + _ROUNDING), rule, sentence))
    return tuple(reasons)


def _target_gain(gain: ConfidenceInterval, policy: GateSettings) -> RuleResult:
    if not all(-1 - _ROUNDING <= number <= 1 + _ROUNDING for number in (gain.value, gain.low, gain.high)):  # NaN is not
        sentence = (
            f"On the new lab's own masks the candidate's gain of Dice is {gain}; it must be known, and between -1 and "
            "1. Evaluate both versions on these masks."
        )
        return RuleResult(False, "target_gain", sentence)
    enough = gain.value >= policy.min_target_gain - _ROUNDING
    sure = gain.low >= -policy.max_target_loss - _ROUNDING
    sentence = (
        f"On the new lab's own masks the candidate's Dice is higher than production's by {gain}; "
        f"{_asked(policy.min_target_gain)}, and the interval must rule out a loss of more than "
        f"{policy.max_target_loss:.3f}{'' if sure or not enough else ': send more masks to tell'}."
    )
    return RuleResult(bool(enough and sure), "target_gain", sentence)


def _signs(candidate: Evidence, production: Evidence, policy: GateSettings) -> RuleResult:
    expected = candidate.label_free.get("expected_foreground_share")
    signs = (
        ("stain_explained_variance", "{new} of the segmentation is explained by the stain (production: {old})", 1.0),
        ("augmentation_consistency", "{new} of it stays when stain and position change ({old})", 1.0),
        (
            "foreground_share",
            f"{{new}} of the area is marked ({{old}}) where the labels let expect {_percent(expected)}",
            expected,
        ),
    )
    spoken, told = 0, []
    for name, words, wanted in signs:
        new, old = candidate.label_free.get(name), production.label_free.get(name)
        speaks = (
            _is_share(new)
            and _is_share(old)
            and _is_share(wanted)
            and abs(old - wanted) - abs(new - wanted) >= policy.min_criterion_gain - _ROUNDING
        )
        spoken += bool(speaks)
        told.append(f"{words.format(new=_percent(new), old=_percent(old))}: {'yes' if speaks else 'no'}")
    sentence = (
        f"The new lab sent no masks. Of three signs that need none, {spoken} {'speaks' if spoken == 1 else 'speak'} "
        f"for the candidate; {policy.min_criteria} must, and of each {_asked(policy.min_criterion_gain)}. "
        f"{'; '.join(told)}."
    )
    return RuleResult(spoken >= policy.min_criteria, "label_free", sentence)


def _not_collapsed(candidate: Evidence, policy: GateSettings) -> RuleResult:
    share = candidate.label_free.get("foreground_share")
    expected = candidate.label_free.get("expected_foreground_share")
    if not (_is_share(share) and _is_share(expected) and expected > 0):
        sentence = (
            f"The candidate marks {_number(share)} of the new lab's area, where {_number(expected)} is expected; both "
            "must be known, and the expected share above 0, to tell whether it has collapsed."
        )
        return RuleResult(False, "foreground_share", sentence)
    ratio = share / expected
    low, high = policy.min_foreground_ratio, policy.max_foreground_ratio
    sentence = (
        f"The candidate marks {share:.1%} of the new lab's area; the labelled labs let expect {expected:.1%}. "
        f"That is {ratio:.2f} times as much; between {low:g} and {high:g} times is allowed."
    )
    return RuleResult(bool(low - _ROUNDING <= ratio <= high + _ROUNDING), "foreground_share", sentence)


def _no_labs() -> RuleResult:
    return RuleResult(
        False, "source_dice", "Dice is not known on any labelled lab; evaluate on at least one lab's held-out images."
    )


def _is_share(value: float | None) -> TypeGuard[float]:
    return value is not None and -_ROUNDING <= value <= 1 + _ROUNDING  # NaN is not


def _percent(value: float | None) -> str:
    return f"{value:.1%}" if _is_share(value) else _number(value)


def _asked(gain: float) -> str:
    if gain == 0:
        return "at least as much is asked"
    return f"a gain of at least {gain:.3f} is asked" if gain > 0 else f"a loss of up to {-gain:.3f} is allowed"


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "unknown"
    return f"{value:.3f}" if _is_share(value) else f"{value:g}, which is impossible"
