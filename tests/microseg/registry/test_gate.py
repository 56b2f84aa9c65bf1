"""The gate: cases by hand, properties, and storage of the decision in tags."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from microseg.config.params import GateSettings
from microseg.registry.gate import ConfidenceInterval, Decision, Evidence, RuleResult, decide
from microseg.registry.registry import Registry

POLICY = GateSettings()
NAN = math.nan


def label_free(
    stain_explained_variance: float = 0.9,
    share: float = 0.3,
    expected: float = 0.4,
    augmentation_consistency: float | None = None,
) -> dict[str, float]:
    known = {
        "stain_explained_variance": stain_explained_variance,
        "augmentation_consistency": stain_explained_variance
        if augmentation_consistency is None
        else augmentation_consistency,
    }
    return known | {"foreground_share": share, "expected_foreground_share": expected}


PRODUCTION = Evidence({"a": 0.80, "b": 0.70}, None, label_free(0.6))


def failed(decision: Decision) -> set[str]:
    return {result.rule for result in decision.rules if not result.passed}


@pytest.mark.parametrize(
    ("candidate", "refused_by"),
    [
        pytest.param(Evidence({"a": 0.81, "b": 0.70}, None, label_free(0.9)), set(), id="better"),
        pytest.param(Evidence({"a": 0.80, "b": 0.70}, None, label_free(0.6)), set(), id="the same"),
        pytest.param(Evidence({"a": 0.78, "b": 0.70}, None, label_free()), set(), id="loses exactly 0.02"),
        pytest.param(
            Evidence({"a": 0.779, "b": 0.9}, None, label_free()), {"source_dice/a"}, id="loses too much on one"
        ),
        pytest.param(Evidence({"a": 0.9}, None, label_free()), {"source_dice/b"}, id="a lab not evaluated"),
        pytest.param(
            Evidence({"a": 0.8, "b": 0.7, "c": 0.9}, None, label_free()), {"source_dice/c"}, id="a lab too many"
        ),
        pytest.param(Evidence({"a": NAN, "b": 0.9}, None, label_free()), {"source_dice/a"}, id="NaN Dice"),
        pytest.param(Evidence({"a": math.inf, "b": 0.9}, None, label_free()), {"source_dice/a"}, id="infinite Dice"),
        pytest.param(Evidence({"a": 1.3, "b": 0.9}, None, label_free()), {"source_dice/a"}, id="impossible Dice"),
        pytest.param(Evidence({"a": 0.8, "b": 0.7}, None, label_free(0.59)), {"label_free"}, id="two criteria not met"),
        pytest.param(Evidence({"a": 0.8, "b": 0.7}, None, label_free(NAN)), {"label_free"}, id="NaN criteria"),
        pytest.param(Evidence({"a": 0.8, "b": 0.7}), {"label_free", "foreground_share"}, id="nothing on the target"),
        pytest.param(
            Evidence({"a": 0.8, "b": 0.7}, None, label_free(1.0, 0.0)), {"foreground_share"}, id="no foreground"
        ),
        pytest.param(Evidence({"a": 0.8, "b": 0.7}, None, label_free(1.0, 0.1)), set(), id="a quarter"),
        pytest.param(
            Evidence({"a": 0.8, "b": 0.7}, None, label_free(1.0, 0.09)), {"foreground_share"}, id="less than a quarter"
        ),
        pytest.param(Evidence({"a": 0.8, "b": 0.7}, None, label_free(1.0, 0.8, 0.2)), set(), id="4 times"),
        pytest.param(
            Evidence({"a": 0.8, "b": 0.7}, None, label_free(1.0, 0.81, 0.2)),
            {"foreground_share"},
            id="more than 4 times",
        ),
        pytest.param(
            Evidence({"a": 0.8, "b": 0.7}, None, label_free(1.0, 0.0, 0.0)), {"foreground_share"}, id="0 of 0"
        ),
    ],
)
def test_decisions_by_hand(candidate: Evidence, refused_by: set[str]) -> None:
    decision = decide(candidate, PRODUCTION, POLICY)
    assert failed(decision) == refused_by
    assert decision.accepted == (not refused_by)


@pytest.mark.parametrize(
    ("gain", "min_gain", "accept"),
    [
        (ConfidenceInterval(0.20, 0.10, 0.30), 0.0, True),
        (ConfidenceInterval(0.00, 0.00, 0.00), 0.0, True),
        (ConfidenceInterval(0.03, -0.02, 0.08), 0.0, True),  # a loss of just 0.02 is possible
        (ConfidenceInterval(0.03, -0.03, 0.09), 0.0, False),  # a larger one is
        (ConfidenceInterval(-0.01, -0.015, 0.00), 0.0, False),  # the estimate falls
        (ConfidenceInterval(0.04, 0.00, 0.08), 0.05, False),
        (ConfidenceInterval(0.05, 0.00, 0.10), 0.05, True),
        (ConfidenceInterval(NAN, 0.00, 0.10), 0.0, False),
        (ConfidenceInterval(0.20, NAN, 0.30), 0.0, False),
        (ConfidenceInterval(0.20, 0.10, math.inf), 0.0, False),
    ],
)
def test_target_gain_replaces_the_label_free_criteria(gain: ConfidenceInterval, min_gain: float, accept: bool) -> None:
    candidate = Evidence(
        {"a": 0.8}, None, label_free(stain_explained_variance=0.1), gain
    )  # explained less than production does
    production = Evidence({"a": 0.8}, label_free=label_free(stain_explained_variance=0.9))
    decision = decide(candidate, production, GateSettings(min_target_gain=min_gain))
    assert decision.accepted is accept
    assert failed(decision) == (set() if accept else {"target_gain"})
    assert "label_free" not in {result.rule for result in decision.rules}


@pytest.mark.parametrize(
    ("stain_explained_variance", "augmentation_consistency", "share", "met"),
    [
        (0.5, 0.9, 0.35, 2),  # red cells left out: less of the stain is explained, and rightly
        (0.9, 0.5, 0.35, 2),
        (0.9, 0.9, 0.15, 2),
        (0.6, 0.6, 0.3, 3),  # as much is enough
        (0.5, 0.9, 0.15, 1),
        (0.9, NAN, 0.15, 1),
        (0.5, 0.5, 0.15, 0),
    ],
)
def test_two_of_three_criteria_are_required(
    stain_explained_variance: float, augmentation_consistency: float, share: float, met: int
) -> None:
    candidate = Evidence(
        {"a": 0.8}, None, label_free(stain_explained_variance, share, augmentation_consistency=augmentation_consistency)
    )
    decision = decide(candidate, Evidence({"a": 0.8}, None, label_free(0.6)), POLICY)
    [rule] = [result for result in decision.rules if result.rule == "label_free"]
    assert rule.passed == (met >= 2)
    assert f"{met} of 3 label-free criteria" in rule.message
    assert rule.message.count(": met") == met


def test_number_of_criteria_is_a_setting() -> None:
    candidate = Evidence({"a": 0.8}, None, label_free(0.5, augmentation_consistency=0.9))
    production = Evidence({"a": 0.8}, None, label_free(0.6))
    assert decide(candidate, production, POLICY).accepted
    assert not decide(candidate, production, GateSettings(min_criteria=3)).accepted


def test_wide_interval_asks_for_more_masks() -> None:
    def message_of(gain: ConfidenceInterval) -> str:
        decision = decide(Evidence({"a": 0.8}, None, label_free(), gain), Evidence({"a": 0.8}), POLICY)
        [message] = [result.message for result in decision.rules if result.rule == "target_gain"]
        return message

    assert message_of(ConfidenceInterval(0.03, -0.05, 0.11)) == (
        "On the target lab's masks the candidate's Dice is higher than production's by 0.030 (-0.050 to 0.110); no "
        "loss is allowed, and the interval must exclude a loss of more than 0.020: more masks are needed."
    )
    for gain in (ConfidenceInterval(0.03, 0.01, 0.05), ConfidenceInterval(-0.03, -0.05, 0.0)):
        assert "more masks" not in message_of(gain)


def test_criteria_decide_if_masks_are_too_few_for_a_gain() -> None:
    dice = ConfidenceInterval(0.9, 0.9, 0.9)
    production = Evidence({"a": 0.8}, ConfidenceInterval(0.1, 0.1, 0.1), label_free(stain_explained_variance=0.5))
    for stain_explained_variance, refused_by in ((0.6, set()), (0.4, {"label_free"})):
        candidate = Evidence({"a": 0.8}, dice, label_free(stain_explained_variance=stain_explained_variance))
        assert failed(decide(candidate, production, POLICY)) == refused_by


def test_collapse_is_refused_even_with_masks() -> None:
    candidate = Evidence({"a": 0.8}, None, label_free(share=0.01), ConfidenceInterval(0.4, 0.3, 0.5))
    assert failed(decide(candidate, Evidence({"a": 0.8}, label_free=label_free()), POLICY)) == {"foreground_share"}


@pytest.mark.parametrize(
    ("dice", "refused_by"),
    [
        ({"a": 0.5}, set()),
        ({"a": 0.9, "b": 0.49}, {"initial_dice/b"}),
        ({"a": NAN}, {"initial_dice/a"}),
        ({"a": 1.3}, {"initial_dice/a"}),
        ({}, {"source_dice"}),
    ],
)
def test_initial_version(dice: dict[str, float], refused_by: set[str]) -> None:
    decision = decide(Evidence(dice), None, POLICY)
    assert failed(decision) == refused_by
    assert decision.accepted == (not refused_by)


def test_evidence_without_labs_is_refused() -> None:
    assert failed(decide(Evidence({}, None, label_free()), Evidence({}, None, label_free()), POLICY)) == {"source_dice"}


def test_messages_contain_the_measurements() -> None:
    decision = decide(Evidence({"a": 0.75, "b": NAN}, None, label_free(0.9, 0.01)), PRODUCTION, POLICY)
    messages = {result.rule: result.message for result in decision.rules}
    assert messages["source_dice/a"] == (
        "On the held-out images of a the candidate loses 0.050 Dice (0.800 to 0.750); a loss of up to 0.020 is allowed."
    )
    assert "unknown for the candidate and 0.700 for production" in messages["source_dice/b"]
    assert messages["label_free"] == (
        "On the target lab 2 of 3 label-free criteria are met; 2 must be, and for each no loss is allowed. "
        "stain-explained variance 90.0% (production: 60.0%): met; augmentation consistency 90.0% (60.0%): met; "
        "foreground share 1.0% (30.0%), 40.0% expected: not met."
    )
    assert "is 1.0%; from the source labs' masks 40.0% is expected" in messages["foreground_share"]
    assert len(decision.failures) == 3


@pytest.mark.parametrize(
    ("gain", "required"),
    [(0.05, "a gain of at least 0.050 is required"), (-0.05, "a loss of up to 0.050 is allowed")],
)
def test_message_contains_the_required_gain(gain: float, required: str) -> None:
    candidate = Evidence({"a": 0.8, "b": 0.7}, None, label_free())
    decision = decide(candidate, PRODUCTION, GateSettings(min_criterion_gain=gain))
    [message] = [result.message for result in decision.rules if result.rule == "label_free"]
    assert f"for each {required}. " in message


def test_numpy_values_give_python_booleans() -> None:
    number = np.float32(0.9)
    dice, free = {"a": number}, dict.fromkeys(label_free(), number)
    unlabelled, labelled = (
        Evidence(dice, None, free),
        Evidence(dice, None, free, ConfidenceInterval(number, number, number)),
    )
    for candidate, production in ((unlabelled, None), (unlabelled, unlabelled), (labelled, labelled)):
        decision = decide(candidate, production, POLICY)
        assert decision.accepted is True
        assert all(type(result.passed) is bool for result in decision.rules)  # so that it can be written as JSON


@pytest.mark.parametrize(
    "wrong", [{"max_source_loss": -0.1}, {"min_foreground_ratio": 5}, {"min_initial_dice": NAN}, {"typo": 1}]
)
def test_rejects_impossible_policies(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        GateSettings(**wrong)


shares = st.floats(0, 1)


@st.composite
def evidence(draw: st.DrawFn, *, masks: bool) -> Evidence:
    gain = ConfidenceInterval(*(draw(st.floats(-1, 1)) for _ in range(3))) if masks else None
    return Evidence({lab: draw(shares) for lab in "ab"}, None, label_free(draw(shares), 0.3), gain)


@given(st.data(), st.booleans(), st.floats(0, 0.5), st.floats(-0.5, 0.5))
def test_better_candidate_is_accepted_if_a_worse_one_is(
    data: st.DataObject, masks: bool, loss: float, gain: float
) -> None:
    policy = GateSettings(max_source_loss=loss, min_criterion_gain=gain, min_target_gain=gain, max_target_loss=loss)
    production, worse = data.draw(evidence(masks=False)), data.draw(evidence(masks=masks))
    raised = {lab: data.draw(st.floats(dice, 1)) for lab, dice in worse.source_dice.items()}
    stain_explained_variance = data.draw(st.floats(worse.label_free["stain_explained_variance"], 1))
    more = worse.target_gain
    if more is not None:
        more = ConfidenceInterval(*(data.draw(st.floats(end, 1)) for end in (more.value, more.low, more.high)))
    best = Evidence(raised, None, label_free(stain_explained_variance, 0.3), more)
    if decide(worse, production, policy).accepted:
        assert decide(best, production, policy).accepted
    if decide(worse, None, policy).accepted:
        assert decide(best, None, policy).accepted


@given(evidence(masks=False), st.sampled_from(["a", "b", *label_free()]))
def test_any_unknown_value_is_refused(known: Evidence, hole: str) -> None:
    lenient = GateSettings(
        max_source_loss=1, min_criteria=3, min_criterion_gain=-1, min_foreground_ratio=1e-9, max_foreground_ratio=1e9
    )
    assert decide(known, PRODUCTION, lenient).accepted
    spoilt = Evidence(
        {lab: NAN if lab == hole else dice for lab, dice in known.source_dice.items()},
        None,
        {name: NAN if name == hole else value for name, value in known.label_free.items()},
    )
    assert not decide(spoilt, PRODUCTION, lenient).accepted


@given(
    st.dictionaries(st.sampled_from("ab"), st.floats()),
    st.one_of(st.none(), st.builds(ConfidenceInterval, st.floats(), st.floats(), st.floats())),
    st.dictionaries(
        st.sampled_from(["stain_explained_variance", "foreground_share", "expected_foreground_share"]), st.floats()
    ),
)
def test_decides_on_any_values(dice: dict[str, float], gain: ConfidenceInterval | None, free: dict[str, float]) -> None:
    for production in (None, PRODUCTION, Evidence(dice, None, free)):
        decision = decide(Evidence(dice, None, free, gain), production, POLICY)
        assert decision.rules
        assert all(isinstance(result, RuleResult) and result.message for result in decision.rules)
        assert decision.accepted == all(result.passed for result in decision.rules)


# ---- the decision as tags of a version


def test_version_without_decision(registry: Registry) -> None:
    assert Decision.from_tags(registry.versions.find(1)) is None


def test_decision_is_restored_from_tags(registry: Registry) -> None:
    refused = Decision(False, (RuleResult(False, "b", "Lost “much”."), RuleResult(True, "a", "Kept.")), 2, 1)
    registry.versions.set_tags(2, refused.to_tags())
    restored = Decision.from_tags(registry.versions.find(2))
    assert restored == refused
    assert restored.failures == ("Lost “much”.",)
    assert str(restored) == "The gate refused it against version 1."
    assert (restored.status, restored.promoted) == ("refused", False)
    overridden = dataclasses.replace(restored, override="needed")
    assert (overridden.status, overridden.promoted) == ("overridden", True)
    assert list(overridden.markdown()) == ["- ✗ Lost “much”.", "- ✓ Kept.", "- Overridden: needed"]


def test_decision_on_a_first_version(registry: Registry) -> None:
    registry.versions.set_tags(1, Decision(True, (RuleResult(True, "a", "Good."),), 1).to_tags())
    restored = Decision.from_tags(registry.versions.find(1))
    assert restored is not None
    assert str(restored) == "The gate accepted it as a first version."
    assert restored.status == "accepted"


def test_decision_is_shortened_to_the_length_of_a_tag() -> None:
    rules = [RuleResult(True, "passed", "x")] + [RuleResult(False, str(number), "x" * 100) for number in range(100)]
    tags = Decision(False, tuple(rules)).to_tags()
    assert all(len(value) <= 5000 for value in tags.values())
    assert all(not rule["passed"] for rule in json.loads(tags["gate.rules"]))
