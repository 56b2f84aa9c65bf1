"""The gate: cases by hand, then what must hold for any numbers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from microseg.config.params import GateSettings
from microseg.registry.gate import ConfidenceInterval, Decision, Evidence, RuleResult, decide

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
    return {reason.rule for reason in decision.reasons if not reason.passed}


@pytest.mark.parametrize(
    ("candidate", "refused_by"),
    [
        pytest.param(Evidence({"a": 0.81, "b": 0.70}, None, label_free(0.9)), set(), id="better"),
        pytest.param(Evidence({"a": 0.80, "b": 0.70}, None, label_free(0.6)), set(), id="the same"),
        pytest.param(Evidence({"a": 0.78, "b": 0.70}, None, label_free()), set(), id="loses just 0.02"),
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
        pytest.param(Evidence({"a": 0.8, "b": 0.7}, None, label_free(0.59)), {"label_free"}, id="two signs less"),
        pytest.param(Evidence({"a": 0.8, "b": 0.7}, None, label_free(NAN)), {"label_free"}, id="NaN signs"),
        pytest.param(Evidence({"a": 0.8, "b": 0.7}), {"label_free", "foreground_share"}, id="nothing on the target"),
        pytest.param(
            Evidence({"a": 0.8, "b": 0.7}, None, label_free(1.0, 0.0)), {"foreground_share"}, id="marks nothing"
        ),
        pytest.param(Evidence({"a": 0.8, "b": 0.7}, None, label_free(1.0, 0.1)), set(), id="marks just a quarter"),
        pytest.param(
            Evidence({"a": 0.8, "b": 0.7}, None, label_free(1.0, 0.09)), {"foreground_share"}, id="marks less"
        ),
        pytest.param(Evidence({"a": 0.8, "b": 0.7}, None, label_free(1.0, 0.8, 0.2)), set(), id="marks just 4 times"),
        pytest.param(
            Evidence({"a": 0.8, "b": 0.7}, None, label_free(1.0, 0.81, 0.2)), {"foreground_share"}, id="marks all"
        ),
        pytest.param(
            Evidence({"a": 0.8, "b": 0.7}, None, label_free(1.0, 0.0, 0.0)), {"foreground_share"}, id="0 of 0"
        ),
    ],
)
def test_cases_by_hand(candidate: Evidence, refused_by: set[str]) -> None:
    decision = decide(candidate, PRODUCTION, POLICY)
    assert failed(decision) == refused_by
    assert decision.accept == (not refused_by)


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
def test_the_gain_on_masks_of_the_target_takes_the_place_of_the_signs(
    gain: ConfidenceInterval, min_gain: float, accept: bool
) -> None:
    candidate = Evidence(
        {"a": 0.8}, None, label_free(stain_explained_variance=0.1), gain
    )  # explained less than production does
    production = Evidence({"a": 0.8}, label_free=label_free(stain_explained_variance=0.9))
    decision = decide(candidate, production, GateSettings(min_target_gain=min_gain))
    assert decision.accept is accept
    assert failed(decision) == (set() if accept else {"target_gain"})
    assert "label_free" not in {reason.rule for reason in decision.reasons}


@pytest.mark.parametrize(
    ("stain_explained_variance", "augmentation_consistency", "share", "speak"),
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
def test_two_of_three_signs_decide(
    stain_explained_variance: float, augmentation_consistency: float, share: float, speak: int
) -> None:
    candidate = Evidence(
        {"a": 0.8}, None, label_free(stain_explained_variance, share, augmentation_consistency=augmentation_consistency)
    )
    decision = decide(candidate, Evidence({"a": 0.8}, None, label_free(0.6)), POLICY)
    [reason] = [reason for reason in decision.reasons if reason.rule == "label_free"]
    assert reason.passed == (speak >= 2)
    assert f" {speak} speak" in reason.sentence
    assert reason.sentence.count(": yes") == speak


def test_how_many_signs_are_asked_is_a_setting() -> None:
    candidate = Evidence({"a": 0.8}, None, label_free(0.5, augmentation_consistency=0.9))
    production = Evidence({"a": 0.8}, None, label_free(0.6))
    assert decide(candidate, production, POLICY).accept
    assert not decide(candidate, production, GateSettings(min_criteria=3)).accept


def test_where_only_the_interval_is_too_wide_more_masks_are_asked_for() -> None:
    def sentence(gain: ConfidenceInterval) -> str:
        decision = decide(Evidence({"a": 0.8}, None, label_free(), gain), Evidence({"a": 0.8}), POLICY)
        [told] = [reason.sentence for reason in decision.reasons if reason.rule == "target_gain"]
        return told

    assert sentence(ConfidenceInterval(0.03, -0.05, 0.11)) == (
        "On the new lab's own masks the candidate's Dice is higher than production's by 0.030 (-0.050 to 0.110); at "
        "least as much is asked, and the interval must rule out a loss of more than 0.020: send more masks to tell."
    )
    for gain in (ConfidenceInterval(0.03, 0.01, 0.05), ConfidenceInterval(-0.03, -0.05, 0.0)):
        assert "send more" not in sentence(gain)


def test_dice_on_masks_too_few_for_a_gain_is_reported_and_the_signs_decide() -> None:
    dice = ConfidenceInterval(0.9, 0.9, 0.9)
    production = Evidence({"a": 0.8}, ConfidenceInterval(0.1, 0.1, 0.1), label_free(stain_explained_variance=0.5))
    for stain_explained_variance, refused_by in ((0.6, set()), (0.4, {"label_free"})):
        candidate = Evidence({"a": 0.8}, dice, label_free(stain_explained_variance=stain_explained_variance))
        assert failed(decide(candidate, production, POLICY)) == refused_by


def test_collapse_refuses_even_with_masks() -> None:
    candidate = Evidence({"a": 0.8}, None, label_free(share=0.01), ConfidenceInterval(0.4, 0.3, 0.5))
    assert failed(decide(candidate, Evidence({"a": 0.8}, label_free=label_free()), POLICY)) == {"foreground_share"}


@pytest.mark.parametrize(
    ("dice", "refused_by"),
    [
        ({"a": 0.5}, set()),
        ({"a": 0.9, "b": 0.49}, {"first_dice/b"}),
        ({"a": NAN}, {"first_dice/a"}),
        ({"a": 1.3}, {"first_dice/a"}),
        ({}, {"source_dice"}),
    ],
)
def test_first_version(dice: dict[str, float], refused_by: set[str]) -> None:
    decision = decide(Evidence(dice), None, POLICY)
    assert failed(decision) == refused_by
    assert decision.accept == (not refused_by)


def test_no_lab_at_all_refuses() -> None:
    assert failed(decide(Evidence({}, None, label_free()), Evidence({}, None, label_free()), POLICY)) == {"source_dice"}


def test_sentences_tell_the_numbers() -> None:
    decision = decide(Evidence({"a": 0.75, "b": NAN}, None, label_free(0.9, 0.01)), PRODUCTION, POLICY)
    sentences = {reason.rule: reason.sentence for reason in decision.reasons}
    assert sentences["source_dice/a"] == (
        "On the held-out images of a the candidate loses 0.050 Dice (0.800 to 0.750); a loss of up to 0.020 is allowed."
    )
    assert "unknown for the candidate and 0.700 for production" in sentences["source_dice/b"]
    assert sentences["label_free"] == (
        "The new lab sent no masks. Of three signs that need none, 2 speak for the candidate; 2 must, and of each at "
        "least as much is asked. 90.0% of the segmentation is explained by the stain (production: 60.0%): yes; "
        "90.0% of it stays when stain and position change (60.0%): yes; "
        "1.0% of the area is marked (30.0%) where the labels let expect 40.0%: no."
    )
    assert "marks 1.0% of the new lab's area; the labelled labs let expect 40.0%" in sentences["foreground_share"]
    assert str(decision).count("REFUSED") == 3


@pytest.mark.parametrize(
    ("gain", "asked"),
    [(0.05, "a gain of at least 0.050 is asked"), (-0.05, "a loss of up to 0.050 is allowed")],
)
def test_what_is_asked_is_told(gain: float, asked: str) -> None:
    candidate = Evidence({"a": 0.8, "b": 0.7}, None, label_free())
    decision = decide(candidate, PRODUCTION, GateSettings(min_criterion_gain=gain))
    [sentence] = [reason.sentence for reason in decision.reasons if reason.rule == "label_free"]
    assert f"of each {asked}. " in sentence


def test_numbers_of_numpy_give_plain_verdicts() -> None:
    number = np.float32(0.9)
    dice, free = {"a": number}, dict.fromkeys(label_free(), number)
    unlabelled, labelled = (
        Evidence(dice, None, free),
        Evidence(dice, None, free, ConfidenceInterval(number, number, number)),
    )
    for candidate, production in ((unlabelled, None), (unlabelled, unlabelled), (labelled, labelled)):
        decision = decide(candidate, production, POLICY)
        assert decision.accept is True
        assert all(type(reason.passed) is bool for reason in decision.reasons)  # so that it can be written as JSON


@pytest.mark.parametrize(
    "wrong", [{"max_source_loss": -0.1}, {"min_foreground_ratio": 5}, {"min_initial_dice": NAN}, {"typo": 1}]
)
def test_impossible_policies_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        GateSettings(**wrong)


shares = st.floats(0, 1)


@st.composite
def evidence(draw: st.DrawFn, *, masks: bool) -> Evidence:
    gain = ConfidenceInterval(*(draw(st.floats(-1, 1)) for _ in range(3))) if masks else None
    return Evidence({lab: draw(shares) for lab in "ab"}, None, label_free(draw(shares), 0.3), gain)


@given(st.data(), st.booleans(), st.floats(0, 0.5), st.floats(-0.5, 0.5))
def test_a_better_candidate_is_never_refused_where_a_worse_is_accepted(
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
    if decide(worse, production, policy).accept:
        assert decide(best, production, policy).accept
    if decide(worse, None, policy).accept:
        assert decide(best, None, policy).accept


@given(evidence(masks=False), st.sampled_from(["a", "b", *label_free()]))
def test_any_unknown_number_refuses(known: Evidence, hole: str) -> None:
    lenient = GateSettings(
        max_source_loss=1, min_criteria=3, min_criterion_gain=-1, min_foreground_ratio=1e-9, max_foreground_ratio=1e9
    )
    assert decide(known, PRODUCTION, lenient).accept
    spoilt = Evidence(
        {lab: NAN if lab == hole else dice for lab, dice in known.source_dice.items()},
        None,
        {name: NAN if name == hole else value for name, value in known.label_free.items()},
    )
    assert not decide(spoilt, PRODUCTION, lenient).accept


@given(
    st.dictionaries(st.sampled_from("ab"), st.floats()),
    st.one_of(st.none(), st.builds(ConfidenceInterval, st.floats(), st.floats(), st.floats())),
    st.dictionaries(
        st.sampled_from(["stain_explained_variance", "foreground_share", "expected_foreground_share"]), st.floats()
    ),
)
def test_never_crashes_and_always_gives_reasons(
    dice: dict[str, float], gain: ConfidenceInterval | None, free: dict[str, float]
) -> None:
    for production in (None, PRODUCTION, Evidence(dice, None, free)):
        decision = decide(Evidence(dice, None, free, gain), production, POLICY)
        assert decision.reasons
        assert all(isinstance(reason, RuleResult) and reason.sentence for reason in decision.reasons)
        assert decision.accept == all(reason.passed for reason in decision.reasons)
