"""The gate: cases by hand, and properties."""

import dataclasses
import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from microseg.config.params import GateSettings
from microseg.registry.decision import ACCEPTED, MET, NEEDS_REVIEW, NOT_MET, REFUSED, UNCLEAR, Decision, RuleResult
from microseg.registry.evidence import ConfidenceInterval, Evidence
from microseg.registry.gate import decide

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


def rules(decision: Decision, outcome: str) -> set[str]:
    return {result.rule for result in decision.rules if result.outcome == outcome}


def failed(decision: Decision) -> set[str]:
    """The rules that are not met; no rule is unclear."""
    assert not rules(decision, UNCLEAR)
    return rules(decision, NOT_MET)


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
        pytest.param(Evidence({"a": 0.8, "b": 0.7}, None, label_free(0.59)), {"label_free"}, id="criteria not met"),
        pytest.param(Evidence({"a": 0.8, "b": 0.7}, None, label_free(NAN)), {"label_free"}, id="NaN criteria"),
        pytest.param(
            Evidence({"a": 0.8, "b": 0.7}),
            {"label_free", "foreground_change", "foreground_share"},
            id="nothing on the target",
        ),
        pytest.param(Evidence({"a": 0.8, "b": 0.7}, None, label_free(1.0, 0.1)), set(), id="a quarter"),
        pytest.param(Evidence({"a": 0.8, "b": 0.7}, None, label_free(1.0, 0.6, 0.15)), set(), id="4 times"),
        pytest.param(
            Evidence({"a": 0.8, "b": 0.7}, None, label_free(1.0, 0.3, 0.0)), {"foreground_share"}, id="0 expected"
        ),
    ],
)
def test_decisions_by_hand(candidate: Evidence, refused_by: set[str]) -> None:
    decision = decide(candidate, PRODUCTION, POLICY)
    assert failed(decision) == refused_by
    assert decision.verdict == (REFUSED if refused_by else ACCEPTED)


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
    assert decision.promoted is accept
    assert failed(decision) == (set() if accept else {"target_gain"})
    assert "label_free" not in {result.rule for result in decision.rules}


@pytest.mark.parametrize(
    ("stain_explained_variance", "augmentation_consistency", "outcome"),
    [
        (0.9, 0.9, MET),
        (0.6, 0.6, MET),  # as much is enough
        (0.5, 0.9, MET),  # red cells left out: less of the stain is explained, and rightly
        (0.9, 0.5, UNCLEAR),
        (0.6, 0.59, UNCLEAR),
        (0.5, 0.5, NOT_MET),
        (0.9, NAN, NOT_MET),
        (NAN, 0.9, NOT_MET),
    ],
)
def test_consistency_decides_and_contradicting_criteria_are_unclear(
    stain_explained_variance: float, augmentation_consistency: float, outcome: str
) -> None:
    criteria = label_free(stain_explained_variance, augmentation_consistency=augmentation_consistency)
    decision = decide(Evidence({"a": 0.8}, None, criteria), Evidence({"a": 0.8}, None, label_free(0.6)), POLICY)
    [rule] = [result for result in decision.rules if result.rule == "label_free"]
    assert rule.outcome == outcome
    assert ("contradict each other" in rule.message) == (outcome == UNCLEAR)


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
    candidate = Evidence({"a": 0.8}, None, label_free(share=0.0009), ConfidenceInterval(0.4, 0.3, 0.5))
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
    assert decision.verdict == (REFUSED if refused_by else ACCEPTED)


def test_evidence_without_labs_is_refused() -> None:
    assert failed(decide(Evidence({}, None, label_free()), Evidence({}, None, label_free()), POLICY)) == {"source_dice"}


def test_messages_contain_the_measurements() -> None:
    decision = decide(Evidence({"a": 0.75, "b": NAN}, None, label_free(0.9, 0.06)), PRODUCTION, POLICY)
    messages = {result.rule: result.message for result in decision.rules}
    assert messages["source_dice/a"] == (
        "On the held-out images of a the candidate loses 0.050 Dice (0.800 to 0.750); a loss of up to 0.020 is allowed."
    )
    assert "unknown for the candidate and 0.700 for production" in messages["source_dice/b"]
    assert messages["label_free"] == (
        "On the target lab augmentation consistency is 90.0% (production: 60.0%) and stain-explained variance is 90.0% "
        "(production: 60.0%). For the first no loss is allowed; where it falls short, the second decides whether a "
        "person must look."
    )
    assert messages["foreground_change"] == (
        "The candidate marks 6.0% of the target lab's images as foreground, production 30.0%. Above a 3-fold change of "
        "foreground or background label-free criteria cannot tell which is right. Look at both side by side: does the "
        "candidate leave out what production marks wrongly, or does it miss objects?"
    )
    assert messages["foreground_share"] == (
        "The candidate's foreground share on the target lab is 6.0%; from the source labs' masks 40.0% is expected. "
        "The ratio is 0.15; a person must look at one outside 0.25 to 4. Production's is 30.0%. Look at both side by "
        "side: are objects missed?"
    )
    unclear = (messages["foreground_change"], messages["foreground_share"])
    assert decision.reasons == (messages["source_dice/a"], messages["source_dice/b"], *unclear)


@pytest.mark.parametrize(
    ("new", "old", "outcome"),
    [
        (0.90, 0.90, MET),
        (0.95, 0.90, MET),
        (0.88, 0.90, MET),
        (0.879, 0.90, UNCLEAR),
        (NAN, 0.90, UNCLEAR),
        (None, 0.90, UNCLEAR),
        (0.90, 1.3, UNCLEAR),
        (0.70, 0.80, UNCLEAR),
        (0.60, 0.79, MET),  # pixels do not tell the classes apart
        (None, None, None),  # evidence of an earlier version
    ],
)
def test_a_person_looks_at_a_loss_of_forward_validation(
    new: float | None, old: float | None, outcome: str | None
) -> None:
    def known(value: float | None, criteria: float) -> dict[str, float]:
        return label_free(criteria) | ({} if value is None else {"forward_validation": value})

    candidate, production = Evidence({"a": 0.8}, None, known(new, 0.9)), Evidence({"a": 0.8}, None, known(old, 0.6))
    decision = decide(candidate, production, POLICY)
    found = {result.rule: result.outcome for result in decision.rules}
    assert found.get("forward_validation") == outcome
    assert decision.verdict == (NEEDS_REVIEW if outcome == UNCLEAR else ACCEPTED)
    decided = dataclasses.replace(candidate, target_gain=ConfidenceInterval(0.2, 0.1, 0.3))
    assert decide(decided, production, POLICY).verdict == ACCEPTED
    refused = dataclasses.replace(candidate, label_free=known(new, 0.5))
    assert decide(refused, production, POLICY).verdict == REFUSED


@pytest.mark.parametrize(
    ("gain", "required"),
    [(0.05, "a gain of at least 0.050 is required"), (-0.05, "a loss of up to 0.050 is allowed")],
)
def test_message_contains_the_required_gain(gain: float, required: str) -> None:
    candidate = Evidence({"a": 0.8, "b": 0.7}, None, label_free())
    decision = decide(candidate, PRODUCTION, GateSettings(min_criterion_gain=gain))
    [message] = [result.message for result in decision.rules if result.rule == "label_free"]
    assert f"For the first {required}; " in message


def test_numpy_values_give_python_booleans() -> None:
    number = np.float32(0.9)
    dice, free = {"a": number}, dict.fromkeys(label_free(), number)
    unlabelled, labelled = (
        Evidence(dice, None, free),
        Evidence(dice, None, free, ConfidenceInterval(number, number, number)),
    )
    for candidate, production in ((unlabelled, None), (unlabelled, unlabelled), (labelled, labelled)):
        decision = decide(candidate, production, POLICY)
        assert decision.verdict == ACCEPTED
        assert all(type(result.outcome) is str for result in decision.rules)  # so that it can be written as JSON


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_source_loss": -0.1},
        {"min_foreground_ratio": 5},
        {"max_foreground_change": 0.5},
        {"collapse_share": 0.5},
        {"min_initial_dice": NAN},
        {"typo": 1},
    ],
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
    for other in (production, None):
        if decide(worse, other, policy).verdict == ACCEPTED:
            assert decide(best, other, policy).verdict == ACCEPTED


@given(evidence(masks=False), st.sampled_from(["a", "b", *label_free()]))
def test_any_unknown_value_is_refused(known: Evidence, hole: str) -> None:
    lenient = GateSettings(
        max_source_loss=1, min_criterion_gain=-1, min_foreground_ratio=1e-9, max_foreground_ratio=1e9
    )
    assert decide(known, PRODUCTION, lenient).verdict == ACCEPTED
    spoilt = Evidence(
        {lab: NAN if lab == hole else dice for lab, dice in known.source_dice.items()},
        None,
        {name: NAN if name == hole else value for name, value in known.label_free.items()},
    )
    assert decide(spoilt, PRODUCTION, lenient).verdict == REFUSED


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
        outcomes = {result.outcome for result in decision.rules}
        assert decision.verdict == verdict_of(outcomes)


# ---- the third verdict


def verdict_of(outcomes: set[str]) -> str:
    return REFUSED if NOT_MET in outcomes else NEEDS_REVIEW if UNCLEAR in outcomes else ACCEPTED


@pytest.mark.parametrize(
    ("source", "criteria", "change", "expected"),
    product((MET, NOT_MET), (MET, NOT_MET), (MET, UNCLEAR), (MET, UNCLEAR)),
)
def test_refused_before_needs_review_before_accepted(source: str, criteria: str, change: str, expected: str) -> None:
    """Every combination of the outcomes that the rules can have."""
    share = 0.15  # of the candidate
    candidate = Evidence(
        {"a": 0.8 if source == MET else 0.7},
        None,
        label_free(0.9 if criteria == MET else 0.5, share, 0.16 if expected == MET else 0.9),
    )
    production = Evidence({"a": 0.8}, None, label_free(0.6, 0.14 if change == MET else 0.03))
    decision = decide(candidate, production, POLICY)
    assert {result.rule: result.outcome for result in decision.rules} == {
        "source_dice/a": source,
        "label_free": criteria,
        "foreground_change": change,
        "foreground_share": expected,
    }
    assert decision.verdict == verdict_of({source, criteria, change, expected})
    assert decision.promoted == (decision.verdict == ACCEPTED)


@pytest.mark.parametrize(
    ("new", "old", "outcome"),
    [
        (0.26, 0.02, UNCLEAR),  # shared/data/cytology: whole cells as nuclei
        (0.02, 0.26, UNCLEAR),
        (0.30, 0.10, MET),
        (0.31, 0.10, UNCLEAR),
        (0.10, 0.30, MET),
        (0.09, 0.30, UNCLEAR),
        (0.90, 0.72, MET),  # the background is 2.8 times less
        (0.93, 0.72, UNCLEAR),  # 4 times less
        (0.20, 0.0, UNCLEAR),
        (0.20, NAN, NOT_MET),
        (0.20, 1.3, NOT_MET),
    ],
)
def test_large_change_of_the_foreground_is_unclear_whatever_the_criteria_say(
    new: float, old: float, outcome: str
) -> None:
    best, poor = label_free(1.0, new, expected=new), label_free(0.5, old, expected=new)
    candidate, production = Evidence({"a": 0.8}, None, best), Evidence({"a": 0.8}, None, poor)
    decision = decide(candidate, production, POLICY)
    outcomes = {result.rule: result.outcome for result in decision.rules}
    assert outcomes["foreground_change"] == outcome
    assert outcomes["label_free"] == MET
    assert decision.verdict == verdict_of({outcome})
    lenient = GateSettings(max_foreground_change=1e9)
    assert rules(decide(candidate, Evidence({"a": 0.8}, None, poor), lenient), UNCLEAR) == (
        {"foreground_change"} if old == 0 else set()
    )


@pytest.mark.parametrize(
    ("share", "old", "expected", "outcome", "text"),
    [
        (0.02, 0.02, 0.24, UNCLEAR, "far fewer objects than the source labs, whose share says nothing then"),
        (0.03, 0.08, 0.24, UNCLEAR, "Production's is 8.0%. Look at both side by side: are objects missed?"),
        (0.9, 0.85, 0.2, UNCLEAR, "far more objects than the source labs, whose share says nothing then"),
        (0.81, 0.6, 0.2, UNCLEAR, "is too much marked?"),
        (0.06, 0.06, 0.24, MET, "The ratio is 0.25"),
        (0.8, 0.6, 0.2, MET, "The ratio is 4.00"),
        (0.0009, 0.001, 0.24, NOT_MET, "has collapsed: a share between 0.1% and 99.9% is required"),
        (0.0, 0.0, 0.24, NOT_MET, "has collapsed"),
        (0.9995, 0.9, 0.9, NOT_MET, "has collapsed"),
        (0.001, 0.001, 0.002, MET, "The ratio is 0.50"),
    ],
)
def test_only_a_collapsed_segmentation_is_refused_by_its_foreground(
    share: float, old: float, expected: float, outcome: str, text: str
) -> None:
    candidate, production = (Evidence({"a": 0.8}, None, label_free(0.9, it, expected)) for it in (share, old))
    decision = decide(candidate, production, GateSettings(max_foreground_change=1e9))
    [result] = [result for result in decision.rules if result.rule == "foreground_share"]
    assert result.outcome == outcome
    assert text in result.message


def test_masks_decide_in_place_of_unclear_evidence() -> None:
    production = Evidence({"a": 0.8}, None, label_free(0.6, 0.26, 0.24))
    for gain, verdict in ((ConfidenceInterval(0.2, 0.1, 0.3), ACCEPTED), (ConfidenceInterval(-0.2, -0.3, 0), REFUSED)):
        decision = decide(Evidence({"a": 0.8}, None, label_free(0.5, 0.02, 0.24), gain), production, POLICY)
        assert decision.verdict == verdict
        assert "a person must look at one outside 0.25 to 4, unless masks decide." in decision.rules[-1].message


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_symmetric_in_foreground_and_background(new: float, old: float, criteria: float) -> None:
    def change(new: float, old: float) -> str:
        sides = (Evidence({"a": 0.8}, None, label_free(criteria, share)) for share in (new, old))
        [result] = [it for it in decide(*sides, POLICY).rules if it.rule == "foreground_change"]
        return result.outcome

    factors = (max(new, old) / max(min(new, old), 1e-12), (1 - min(new, old)) / max(1 - max(new, old), 1e-12))
    if not any(2.999 < factor < 3.001 for factor in factors):  # rounding
        assert change(new, old) == change(old, new) == change(1 - new, 1 - old)


def test_loss_of_a_lab_needs_review() -> None:
    production, candidate = (Evidence({"lab_a": dice}, label_free=label_free()) for dice in (0.8, 0.81))
    assert decide(candidate, production, POLICY).verdict == ACCEPTED
    decision = decide(candidate, production, POLICY, lost_labs=["lab_b"])
    assert decision.verdict == NEEDS_REVIEW
    assert "promoting it would lose lab_b. Adapt from production instead" in decision.reasons[0]


@pytest.mark.parametrize(
    ("new", "old", "refused"),
    [
        ({"a": 0.77}, {"a": 0.80}, False),
        ({"a": 0.769}, {"a": 0.80}, True),
        ({"a": NAN}, {"a": 0.80}, True),
        ({}, {"a": 0.80}, True),
        ({"a": 0.9}, {}, True),
        ({}, {}, False),
    ],
)
def test_object_f1_of_source_labs_is_kept(new: dict[str, float], old: dict[str, float], refused: bool) -> None:
    """A head that fuses touching nuclei keeps its Dice."""
    candidate = dataclasses.replace(PRODUCTION, source_f1=new)
    decision = decide(candidate, dataclasses.replace(PRODUCTION, source_f1=old), POLICY)
    assert failed(decision) == ({"source_f1/a"} if refused else set())
