"""The decision of the promotion gate on a version, as it is computed, shown, and stored with the version in MLflow."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Final, Literal

from pydantic import TypeAdapter

from microseg.escaping import markdown
from microseg.registry.version import TAG_LENGTH, ModelVersion

__all__ = [
    "ACCEPTED",
    "MET",
    "NEEDS_REVIEW",
    "NOT_EVALUATED",
    "NOT_MET",
    "OVERRIDDEN",
    "REFUSED",
    "UNCLEAR",
    "Decision",
    "Outcome",
    "RuleResult",
    "Verdict",
]

Outcome = Literal["met", "not met", "unclear"]
"""Of a rule. ``unclear``: the evidence contradicts itself."""
MET: Final = "met"
NOT_MET: Final = "not met"
UNCLEAR: Final = "unclear"

Verdict = Literal["accepted", "refused", "needs review"]
"""Of the gate. ``needs review``: the gate cannot tell, a person must look."""
ACCEPTED: Final = "accepted"
REFUSED: Final = "refused"
NEEDS_REVIEW: Final = "needs review"

OVERRIDDEN, NOT_EVALUATED = "overridden", "not evaluated"

_VERDICT_TAG, _PRODUCTION_TAG, _RULES_TAG = "gate", "gate.production_version", "gate.rules"


@dataclass(frozen=True)
class RuleResult:
    """The result of one rule.

    Args:
        outcome: Whether the rule is met; ``unclear`` if the evidence contradicts itself.
        rule: Name of the rule, such as ``"source_dice/lab_a"``.
        message: The measurements and the required values, as a sentence; if unclear, also what to look at.
    """

    outcome: Outcome
    rule: str
    message: str


_MARKS: Mapping[Outcome, str] = {NOT_MET: "✗", UNCLEAR: "?", MET: "✓"}  # the most important first


_RULES = TypeAdapter(tuple[RuleResult, ...])


@dataclass(frozen=True)
class Decision:
    """The decision of the gate, as it is computed, stored with the version in MLflow, returned by flows and shown.

    Args:
        verdict: ``"accepted"``, ``"refused"``, or ``"needs review"``: the gate cannot tell, a person must look.
        rules: The results of the rules that apply; never empty.
        version: Number of the candidate version, once known.
        production_version: Number of the version in production that it was compared with; None if there was none.
        override: Reason for which a person promotes the version although the gate did not accept it.
    """

    verdict: Verdict
    rules: tuple[RuleResult, ...]
    version: int | None = None
    production_version: int | None = None
    override: str | None = None

    @property
    def status(self) -> str:
        """The verdict, or ``overridden`` if a person promotes the version although the gate refused it."""
        return OVERRIDDEN if self.verdict == REFUSED and self.override is not None else self.verdict

    @property
    def promoted(self) -> bool:
        """Whether the version goes to production."""
        return self.verdict == ACCEPTED or self.override is not None

    @property
    def reasons(self) -> tuple[str, ...]:
        """The messages of the rules that are not met, then of those that are unclear."""
        return tuple(
            result.message for outcome in (NOT_MET, UNCLEAR) for result in self.rules if result.outcome == outcome
        )

    def __str__(self) -> str:
        number = self.production_version
        if self.verdict == NEEDS_REVIEW:
            better = "may be a first version" if number is None else f"is better than version {number}"
            return f"The gate cannot tell whether it {better}: a person must look."
        return f"The gate {self.verdict} it {'as a first version' if number is None else f'against version {number}'}."

    def next_step(self, lab: str | None = None) -> str:
        """What a person at the command line does next, in one sentence.

        Args:
            lab: Lab for whose images alone the version would be promoted; None for all labs.
        """
        command, old = f"microseg promote {self.version}{f' --lab {lab}' if lab else ''}", self.production_version
        if self.promoted:
            return f"Next: {command}"
        stays = f"version {old} stays in production" if old else "no version is in production"
        if self.verdict == REFUSED:
            return f"Nothing needs to be done: {stays}; to promote it all the same: {command} --override REASON"
        return (
            f"Next: look at both versions on the decision page; if version {self.version} is better: {command} "
            f"--override REASON; otherwise nothing needs to be done: {stays}."
        )

    def markdown(self) -> Iterator[str]:
        """A list item for each rule."""
        yield from (f"- {_MARKS[result.outcome]} {markdown(result.message)}" for result in self.rules)
        if self.override is not None and self.verdict != ACCEPTED:
            by = "Overridden" if self.verdict == REFUSED else "Promoted by a person"
            yield f"- {by}: {markdown(self.override or 'no reason was given')}"

    def to_tags(self) -> dict[str, str]:
        """Return the decision as tags of the version; results that do not fit into a tag are left out."""
        order = list(_MARKS)
        rules = sorted((asdict(result) for result in self.rules), key=lambda result: order.index(result["outcome"]))
        while len(text := json.dumps(rules, ensure_ascii=False)) > TAG_LENGTH:
            rules.pop()
        return {_VERDICT_TAG: self.verdict, _PRODUCTION_TAG: str(self.production_version or "none"), _RULES_TAG: text}

    @classmethod
    def from_tags(cls, version: ModelVersion) -> "Decision | None":
        """Return the last decision on a version; None if the gate was not evaluated on it."""
        verdicts: Mapping[str | None, Verdict] = {it: it for it in (ACCEPTED, REFUSED, NEEDS_REVIEW)}
        verdict, production = verdicts.get(version.tags.get(_VERDICT_TAG)), version.tags.get(_PRODUCTION_TAG, "")
        if verdict is None:
            return None
        try:
            rules = _RULES.validate_json(version.tags.get(_RULES_TAG) or "[]")
        except ValueError:  # any client can write tags
            rules = ()
        return cls(verdict, rules, version.version, int(production) if production.isdecimal() else None)
