"""The decision of the gate: its status, its text, and its storage in tags of a version."""

import dataclasses
import json

import pytest

from microseg.registry.decision import ACCEPTED, MET, NEEDS_REVIEW, NOT_MET, REFUSED, UNCLEAR, Decision, RuleResult
from microseg.registry.registry import Registry

KEPT, LOST = RuleResult(MET, "a", "Kept."), RuleResult(NOT_MET, "b", "Lost “much”.")
FAR = RuleResult(UNCLEAR, "c", "Far more; look.")


def restored(registry: Registry, decision: Decision) -> Decision:
    registry.versions.set_tags(2, decision.to_tags())
    found = Decision.from_tags(registry.versions.find(2))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("verdict", "override", "status", "promoted", "last"),
    [
        (ACCEPTED, None, "accepted", True, "- ✓ Kept."),
        (ACCEPTED, "looked", "accepted", True, "- ✓ Kept."),
        (REFUSED, None, "refused", False, "- ✓ Kept."),
        (REFUSED, "needed", "overridden", True, "- Overridden: needed"),
        (REFUSED, "", "overridden", True, "- Overridden: no reason was given"),
        (NEEDS_REVIEW, None, "needs review", False, "- ✓ Kept."),
        (NEEDS_REVIEW, "looked", "needs review", True, "- Promoted by a person: looked"),
    ],
)
def test_status(verdict: str, override: str | None, status: str, promoted: bool, last: str) -> None:
    decision = Decision(verdict, (KEPT,), 2, 1, override)  # type: ignore[arg-type]
    assert (decision.status, decision.promoted) == (status, promoted)
    assert list(decision.markdown())[-1] == last


@pytest.mark.parametrize(
    ("decision", "text"),
    [
        (Decision(ACCEPTED, (KEPT,), 2, 1), "The gate accepted it against version 1."),
        (Decision(REFUSED, (LOST,), 2, 1), "The gate refused it against version 1."),
        (Decision(ACCEPTED, (KEPT,), 1), "The gate accepted it as a first version."),
        (
            Decision(NEEDS_REVIEW, (FAR,), 2, 1),
            "The gate cannot tell whether it is better than version 1: a person must look.",
        ),
        (
            Decision(NEEDS_REVIEW, (FAR,), 2),
            "The gate cannot tell whether it may be a first version: a person must look.",
        ),
    ],
)
def test_text(decision: Decision, text: str) -> None:
    assert str(decision) == text


@pytest.mark.parametrize(
    ("decision", "lab", "text"),
    [
        (Decision(ACCEPTED, (KEPT,), 2, 1), None, "Next: microseg promote 2"),
        (Decision(ACCEPTED, (KEPT,), 2, 1), "lab_b", "Next: microseg promote 2 --lab lab_b"),
        (
            Decision(REFUSED, (LOST,), 2, 1),
            "lab_b",
            "Nothing needs to be done: version 1 stays in production; to promote it all the same: microseg promote 2 "
            "--lab lab_b --override REASON",
        ),
        (
            Decision(NEEDS_REVIEW, (FAR,), 2),
            None,
            "Next: look at both versions on the decision page; if version 2 is better: microseg promote 2 --override "
            "REASON; otherwise nothing needs to be done: no version is in production.",
        ),
    ],
)
def test_next_step(decision: Decision, lab: str | None, text: str) -> None:
    assert decision.next_step(lab) == text


def test_version_without_decision(registry: Registry) -> None:
    assert Decision.from_tags(registry.versions.find(1)) is None
    registry.versions.set_tags(1, {"gate": "something else"})
    assert Decision.from_tags(registry.versions.find(1)) is None


@pytest.mark.parametrize("verdict", [ACCEPTED, REFUSED, NEEDS_REVIEW])
def test_decision_is_restored_from_tags(registry: Registry, verdict: str) -> None:
    decision = Decision(verdict, (LOST, FAR, KEPT), 2, 1)  # type: ignore[arg-type]
    assert restored(registry, decision) == decision
    assert registry.versions.find(2).tags["gate"] == verdict
    assert restored(registry, dataclasses.replace(decision, production_version=None)).production_version is None


def test_rules_are_stored_and_explained_the_most_important_first(registry: Registry) -> None:
    found = restored(registry, Decision(REFUSED, (KEPT, FAR, LOST), 2, 1))
    assert found.rules == (LOST, FAR, KEPT)
    assert found.reasons == ("Lost “much”.", "Far more; look.")
    assert list(found.markdown()) == ["- ✗ Lost “much”.", "- ? Far more; look.", "- ✓ Kept."]


def test_decision_is_shortened_to_the_length_of_a_tag() -> None:
    rules = [KEPT, FAR] + [RuleResult(NOT_MET, str(number), "x" * 100) for number in range(100)]
    tags = Decision(REFUSED, tuple(rules)).to_tags()
    assert all(len(value) <= 5000 for value in tags.values())
    assert all(rule["outcome"] == NOT_MET for rule in json.loads(tags["gate.rules"]))


def test_unreadable_rules_leave_the_verdict(registry: Registry) -> None:
    registry.versions.set_tags(2, {"gate": "refused", "gate.rules": '[{"passed": false}]'})
    assert Decision.from_tags(registry.versions.find(2)) == Decision(REFUSED, (), 2, None)


@pytest.mark.parametrize(
    "rules", ['[{"outcome": "passed", "rule": "a", "message": "b"}]', "[{}]", "1", '[{"outcome": []}]', "{"]
)
def test_rules_that_another_client_wrote_wrongly_are_left_out(registry: Registry, rules: str) -> None:
    registry.versions.set_tags(2, {"gate": "refused", "gate.rules": rules})
    found = Decision.from_tags(registry.versions.find(2))
    assert found is not None
    assert (found.verdict, found.rules, list(found.markdown())) == (REFUSED, (), [])
