"""The gate's verdict as it is kept with a version: promotion by hand asks for it, the history tells it."""

import json
from dataclasses import dataclass

from microseg.registry.gate import Decision
from microseg.registry.version import ModelVersion

__all__ = ["OVERRIDDEN", "StoredVerdict", "stored_verdict", "verdict_tags"]

OVERRIDDEN = "refused, overridden"
"""The verdict on a version that a person promotes although the gate refused it."""

_VERDICT_TAG, _AGAINST_TAG, _FAULTS_TAG = "gate", "gate_against", "gate_refusals"
_TAG_CHARACTERS = 5000


@dataclass(frozen=True)
class StoredVerdict:
    """What the gate said of a version when it was judged last.

    Args:
        accepted: Its verdict.
        against: The version that was in use then; None when there was none.
        refusals: A sentence for each rule that was not met.
    """

    accepted: bool
    against: int | None
    refusals: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """Such as ``accepted it against version 3``."""
        rival = "as a first version" if self.against is None else f"against version {self.against}"
        return f"{'accepted' if self.accepted else 'refused'} it {rival}"

    def verdict(self, *, promoted: bool) -> str:
        """For the history: a version that was refused and is promoted all the same was overridden."""
        return "accepted" if self.accepted else OVERRIDDEN if promoted else "refused"


def verdict_tags(decision: Decision, against: ModelVersion | None) -> dict[str, str]:
    """The verdict as tags of a version.

    Args:
        decision: The gate's.
        against: The version in use that it was compared with.
    """
    refusals = [reason.sentence for reason in decision.reasons if not reason.passed]
    while len(text := json.dumps(refusals, ensure_ascii=False)) > _TAG_CHARACTERS:
        refusals.pop()
    return {
        _VERDICT_TAG: "accepted" if decision.accept else "refused",
        _AGAINST_TAG: str(against.version) if against else "none",
        _FAULTS_TAG: text,
    }


def stored_verdict(version: ModelVersion) -> StoredVerdict | None:
    """The verdict on a version; None when it was never judged."""
    verdict = version.tags.get(_VERDICT_TAG)
    if verdict not in ("accepted", "refused"):
        return None
    against = version.tags.get(_AGAINST_TAG, "")
    try:
        refusals = tuple(str(sentence) for sentence in json.loads(version.tags.get(_FAULTS_TAG) or "[]"))
    except ValueError:
        refusals = ()
    return StoredVerdict(verdict == "accepted", int(against) if against.isdecimal() else None, refusals)
