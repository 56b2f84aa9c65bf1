"""The promotion gate: may a candidate replace the production model? A pure function of the evidence.

The loss of Dice on the source labs is measured. On a target lab without masks there is only label-free evidence, and no
single criterion is always right: two of three must be met (stain-explained variance, augmentation consistency, and the
distance of the foreground share to the expected one), and the candidate must not have collapsed to almost no or almost
only foreground. If the target lab has masks of enough slides, the Dice gained on these decides instead of the
criteria, by its confidence interval: a gain that cannot be distinguished from a loss is refused.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TypeGuard

from microseg.config.params import GateSettings
from microseg.registry.version import TAG_LENGTH, ModelVersion

__all__ = ["NOT_EVALUATED", "OVERRIDDEN", "ConfidenceInterval", "Decision", "Evidence", "RuleResult", "decide"]

ACCEPTED, REFUSED, OVERRIDDEN, NOT_EVALUATED = "accepted", "refused", "overridden", "not evaluated"

_STATUS_TAG, _PRODUCTION_TAG, _RULES_TAG = "gate", "gate.production_version", "gate.rules"
_TOLERANCE = 1e-9  # so that 0.80 − 0.78 does not exceed 0.02


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
    """Measurements of one model version.

    Args:
        source_dice: Mean Dice (0..1) on the held-out images of each source lab.
        target_dice: Dice (0..1) on the target lab's masks, if it has some; only reported.
        label_free: Label-free measurements on the target lab. The gate uses ``stain_explained_variance`` (0..1),
            ``augmentation_consistency`` (Cohen's kappa, 0..1), ``foreground_share`` (predicted, 0..1) and
            ``expected_foreground_share`` (in the masks of the source labs, 0..1); others are only reported. Counts are
            integers.
        target_gain: Of the candidate: Dice gained over production on the target lab's masks, image by image (-1..1);
            None if there are masks of too few slides.
    """

    source_dice: Mapping[str, float] = field(default_factory=dict)
    target_dice: ConfidenceInterval | None = None
    label_free: Mapping[str, int | float] = field(default_factory=dict)
    target_gain: ConfidenceInterval | None = None


@dataclass(frozen=True)
class RuleResult:
    """The result of one rule.

    Args:
        passed: Whether the rule is met.
        rule: Name of the rule, such as ``"source_dice/lab_a"``.
        message: The measurements and the required values, as a sentence.
    """

    passed: bool
    rule: str
    message: str


@dataclass(frozen=True)
class Decision:
    """The decision of the gate, as it is computed, stored with the version in MLflow, returned by flows and shown.

    Args:
        accepted: Whether every rule is met.
        rules: The results of the rules that apply; never empty.
        version: Number of the candidate version, once known.
        production_version: Number of the version in production that it was compared with; None if there was none.
        override: Reason for which a person promotes the version although the gate refuses it.
    """

    accepted: bool
    rules: tuple[RuleResult, ...]
    version: int | None = None
    production_version: int | None = None
    override: str | None = None

    @property
    def status(self) -> str:
        """``accepted``, ``refused`` or ``overridden``."""
        return ACCEPTED if self.accepted else REFUSED if self.override is None else OVERRIDDEN

    @property
    def promoted(self) -> bool:
        """Whether the version goes to production."""
        return self.status != REFUSED

    @property
    def failures(self) -> tuple[str, ...]:
        """The messages of the rules that are not met."""
        return tuple(result.message for result in self.rules if not result.passed)

    def __str__(self) -> str:
        number = self.production_version
        compared = "as a first version" if number is None else f"against version {number}"
        return f"The gate {ACCEPTED if self.accepted else REFUSED} it {compared}."

    def markdown(self) -> Iterator[str]:
        """A list item for each rule."""
        yield from (f"- {'✓' if result.passed else '✗'} {result.message}" for result in self.rules)
        if self.status == OVERRIDDEN:
            yield f"- Overridden: {self.override or 'no reason was given'}"

    def to_tags(self) -> dict[str, str]:
        """Return the decision as tags of the version; results that do not fit into a tag are left out."""
        rules = sorted((asdict(result) for result in self.rules), key=lambda result: bool(result["passed"]))
        while len(text := json.dumps(rules, ensure_ascii=False)) > TAG_LENGTH:
            rules.pop()
        return {
            _STATUS_TAG: ACCEPTED if self.accepted else REFUSED,
            _PRODUCTION_TAG: str(self.production_version or "none"),
            _RULES_TAG: text,
        }

    @classmethod
    def from_tags(cls, version: ModelVersion) -> "Decision | None":
        """Return the last decision on a version; None if the gate was not evaluated on it."""
        status, production = version.tags.get(_STATUS_TAG), version.tags.get(_PRODUCTION_TAG, "")
        if status not in (ACCEPTED, REFUSED):
            return None
        try:
            rules = tuple(RuleResult(**result) for result in json.loads(version.tags.get(_RULES_TAG) or "[]"))
        except (ValueError, TypeError):
            rules = ()
        return cls(status == ACCEPTED, rules, version.version, int(production) if production.isdecimal() else None)


_NO_SOURCE_LABS = RuleResult(
    False, "source_dice", "No Dice of a source lab is known; evaluate on the held-out images of at least one lab."
)


def decide(candidate: Evidence, production: Evidence | None, policy: GateSettings) -> Decision:
    """Accept or refuse a candidate.

    Missing, non-finite and impossible values are refused: missing evidence never counts in favor of a candidate.

    Args:
        candidate: Evidence on the candidate.
        production: Evidence on the version in production, measured on the same images; None if there is none yet.
        policy: The thresholds.

    Returns:
        The decision with the result of each rule. A known Dice gain on the target lab's masks replaces the label-free
        criteria; the rule against collapse always applies.
    """
    if production is None:
        rules = _initial_rules(candidate, policy)
    else:
        gain = candidate.target_gain
        rules = (
            *_source_rules(candidate, production, policy),
            _label_free_rule(candidate, production, policy) if gain is None else _target_gain_rule(gain, policy),
            _collapse_rule(candidate, policy),
        )
    return Decision(all(result.passed for result in rules), rules)


def _initial_rules(candidate: Evidence, policy: GateSettings) -> tuple[RuleResult, ...]:
    if not candidate.source_dice:
        return (_NO_SOURCE_LABS,)
    results = []
    for lab, dice in sorted(candidate.source_dice.items()):
        passed = _is_fraction(dice) and dice >= policy.min_initial_dice - _TOLERANCE
        message = (
            f"On the held-out images of {lab} the first model has a Dice of {_format(dice)}; "
            f"at least {policy.min_initial_dice:.3f} is required."
        )
        results.append(RuleResult(bool(passed), f"initial_dice/{lab}", message))
    return tuple(results)


def _source_rules(candidate: Evidence, production: Evidence, policy: GateSettings) -> tuple[RuleResult, ...]:
    labs = sorted(candidate.source_dice.keys() | production.source_dice.keys())
    if not labs:
        return (_NO_SOURCE_LABS,)
    results = []
    for lab in labs:
        new, old = candidate.source_dice.get(lab), production.source_dice.get(lab)
        rule = f"source_dice/{lab}"
        if not (_is_fraction(new) and _is_fraction(old)):
            message = (
                f"On the held-out images of {lab} Dice is {_format(new)} for the candidate and {_format(old)} for "
                "production; both are required. Evaluate both on this lab."
            )
            results.append(RuleResult(False, rule, message))
            continue
        loss = old - new
        change = f"loses {loss:.3f}" if loss > 0 else f"gains {-loss:.3f}"
        message = (
            f"On the held-out images of {lab} the candidate {change} Dice ({old:.3f} to {new:.3f}); "
            f"a loss of up to {policy.max_source_loss:.3f} is allowed."
        )
        results.append(RuleResult(bool(loss <= policy.max_source_loss + _TOLERANCE), rule, message))
    return tuple(results)


def _target_gain_rule(gain: ConfidenceInterval, policy: GateSettings) -> RuleResult:
    if not all(-1 - _TOLERANCE <= number <= 1 + _TOLERANCE for number in (gain.value, gain.low, gain.high)):  # or NaN
        message = (
            f"On the target lab's masks the candidate's gain of Dice is {gain}; a value between -1 and 1 is required. "
            "Evaluate both versions on these masks."
        )
        return RuleResult(False, "target_gain", message)
    enough = gain.value >= policy.min_target_gain - _TOLERANCE
    certain = gain.low >= -policy.max_target_loss - _TOLERANCE
    message = (
        f"On the target lab's masks the candidate's Dice is higher than production's by {gain}; "
        f"{_required(policy.min_target_gain)}, and the interval must exclude a loss of more than "
        f"{policy.max_target_loss:.3f}{'' if certain or not enough else ': more masks are needed'}."
    )
    return RuleResult(bool(enough and certain), "target_gain", message)


def _label_free_rule(candidate: Evidence, production: Evidence, policy: GateSettings) -> RuleResult:
    expected = candidate.label_free.get("expected_foreground_share")
    criteria = (
        ("stain_explained_variance", "stain-explained variance {new} (production: {old})", 1.0),
        ("augmentation_consistency", "augmentation consistency {new} ({old})", 1.0),
        ("foreground_share", f"foreground share {{new}} ({{old}}), {_percent(expected)} expected", expected),
    )
    count, parts = 0, []
    for name, text, ideal in criteria:
        new, old = candidate.label_free.get(name), production.label_free.get(name)
        met = (
            _is_fraction(new)
            and _is_fraction(old)
            and _is_fraction(ideal)
            and abs(old - ideal) - abs(new - ideal) >= policy.min_criterion_gain - _TOLERANCE
        )
        count += bool(met)
        parts.append(f"{text.format(new=_percent(new), old=_percent(old))}: {'met' if met else 'not met'}")
    message = (
        f"On the target lab {count} of 3 label-free criteria {'is' if count == 1 else 'are'} met; "
        f"{policy.min_criteria} must be, and for each {_required(policy.min_criterion_gain)}. {'; '.join(parts)}."
    )
    return RuleResult(count >= policy.min_criteria, "label_free", message)


def _collapse_rule(candidate: Evidence, policy: GateSettings) -> RuleResult:
    share = candidate.label_free.get("foreground_share")
    expected = candidate.label_free.get("expected_foreground_share")
    if not (_is_fraction(share) and _is_fraction(expected) and expected > 0):
        message = (
            f"The candidate's foreground share on the target lab is {_format(share)}, the expected one "
            f"{_format(expected)}; both are required, and the expected one must be above 0."
        )
        return RuleResult(False, "foreground_share", message)
    ratio = share / expected
    low, high = policy.min_foreground_ratio, policy.max_foreground_ratio
    message = (
        f"The candidate's foreground share on the target lab is {share:.1%}; from the source labs' masks "
        f"{expected:.1%} is expected. The ratio is {ratio:.2f}; between {low:g} and {high:g} is allowed."
    )
    return RuleResult(bool(low - _TOLERANCE <= ratio <= high + _TOLERANCE), "foreground_share", message)


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
