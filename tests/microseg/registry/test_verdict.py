"""The gate's verdict, kept with the version."""

from microseg.registry.gate import Decision, RuleResult
from microseg.registry.registry import Registry
from microseg.registry.verdict import stored_verdict, verdict_tags

REFUSED = Decision(False, (RuleResult(True, "a", "Kept."), RuleResult(False, "b", "Lost “much”.")))


def test_a_version_that_was_never_judged(registry: Registry) -> None:
    assert stored_verdict(registry.resolve(1)) is None


def test_a_verdict_comes_back(registry: Registry) -> None:
    registry.set_tags(2, verdict_tags(REFUSED, registry.resolve(1)))
    report = stored_verdict(registry.resolve(2))
    assert report is not None
    assert (report.accepted, report.against, report.refusals) == (False, 1, ("Lost “much”.",))
    assert report.sentence == "refused it against version 1"
    assert report.verdict(promoted=True) == "refused, overridden"
    assert report.verdict(promoted=False) == "refused"


def test_a_first_version(registry: Registry) -> None:
    registry.set_tags(1, verdict_tags(Decision(True, (RuleResult(True, "a", "Good."),)), None))
    report = stored_verdict(registry.resolve(1))
    assert report is not None
    assert report.sentence == "accepted it as a first version"
    assert report.verdict(promoted=True) == "accepted"


def test_more_than_a_tag_can_hold_is_cut() -> None:
    many = Decision(False, tuple(RuleResult(False, str(number), "x" * 100) for number in range(100)))
    assert all(len(value) <= 5000 for value in verdict_tags(many, None).values())
