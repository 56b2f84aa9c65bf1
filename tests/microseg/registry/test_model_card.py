from microseg.config.params import GateSettings
from microseg.registry.gate import ConfidenceInterval, Evidence, decide
from microseg.registry.model_card import ModelCardLab, model_card

LAB_A = ModelCardLab("lab_a", "source", "aaaa.dir", "H&E", 85, 85)
LAB_B = ModelCardLab("lab_b", "target", "bbbb.dir", "DAB-H | blue", 40, 0)


def label_free(cohen_kappa: float) -> dict[str, float]:
    return {
        "stain_explained_variance": cohen_kappa,
        "augmentation_consistency": cohen_kappa,
        "foreground_share": 0.3,
        "expected_foreground_share": 0.4,
        "entropy": 0.12,
        "images": 32,
    }


def adapted(**change: object) -> str:
    candidate = Evidence({"lab_a": 0.84}, None, label_free(0.91))
    production = Evidence({"lab_a": 0.83}, None, label_free(0.72))
    arguments: dict[str, object] = {
        "method": "dual_adaptive_pyramid",
        "classes": ("background", "gland"),
        "mpp": 0.5,
        "labs": (LAB_A, LAB_B),
        "params": {"epochs": 40, "lambda_img": 0.01},
        "candidate": candidate,
        "production": production,
        "decision": decide(candidate, production, GateSettings()),
        "production_version": 3,
        "run_id": "1f2e",
        "commit": "c0ffee",
    }
    return model_card(**{**arguments, **change})


def test_the_first_line_says_what_it_is_and_how_it_was_judged() -> None:
    first = adapted().splitlines()[0]
    assert first == "Adapted to lab_b (dual_adaptive_pyramid) · accepted by the gate · Dice lab_a 0.840."


def test_a_refusal_is_not_hidden() -> None:
    candidate = Evidence({"lab_a": 0.70}, None, label_free(0.91))
    production = Evidence({"lab_a": 0.83}, None, label_free(0.72))
    card = adapted(candidate=candidate, decision=decide(candidate, production, GateSettings()))
    assert "REFUSED by the gate" in card.splitlines()[0]
    assert "- **Refused**: On the held-out images of lab_a the candidate loses 0.130 Dice" in card
    assert "- Passed: The new lab sent no masks." in card


def test_sections_and_facts() -> None:
    card = adapted()
    headings = [line for line in card.splitlines() if line.startswith("## ")]
    assert headings == [
        f"## {name}"
        for name in (
            "Gate",
            "Performance",
            "What it is",
            "Intended use",
            "Limits",
            "Data",
            "Training",
            "Lineage",
            "How to load",
        )
    ]
    assert "It works at 0.5 microns per pixel" in card
    assert "| lab_a | source | H&E | 85 | 85 | `aaaa.dir` |" in card
    assert "| lab_b | target | DAB-H \\| blue | 40 | 0 | `bbbb.dir` |" in card  # a bar must not end the cell
    assert "- epochs: 40" in card
    assert "| | this version | version 3 (production) |" in card
    assert "| Dice, held-out images of lab_a | 0.840 | 0.830 |" in card
    assert "| New lab: agreement with itself | 0.910 | 0.720 |" in card
    assert "| New lab: entropy | 0.120 | 0.120 |" in card
    assert "| New lab: images of the new lab looked at | 32 | 32 |" in card
    assert "- Run: 1f2e\n- Code: c0ffee" in card
    assert 'Segmenter.load("production")' in card
    assert "not for diagnosis" in card


def test_masks_of_the_target_are_shown_with_their_interval() -> None:
    card = adapted(candidate=Evidence({"lab_a": 0.84}, ConfidenceInterval(0.8, 0.75, 0.85)))
    assert "| Dice, the new lab's own masks | 0.800 (0.750 to 0.850) | – |" in card
    assert "gained" not in card
    card = adapted(candidate=Evidence({"lab_a": 0.84}, target_gain=ConfidenceInterval(0.1, -0.01, 0.2)))
    assert "| Dice gained on the new lab's own masks | 0.100 (-0.010 to 0.200) | – |" in card


def test_before_evaluation_nothing_is_claimed() -> None:
    card = adapted(labs=(LAB_A,), mpp=None, candidate=None, production=None, decision=None, run_id=None, commit=None)
    assert card.splitlines()[0] == "Trained on lab_a (dual_adaptive_pyramid) · not judged yet · not evaluated yet."
    assert "## Performance" not in card
    assert "## Gate" not in card
    assert "at a pixel size that was not stated" in card
    assert "- Run: unknown\n- Code: unknown" in card


def test_a_usual_card_fits_into_mlflows_description() -> None:
    assert len(adapted()) < 5000


def test_pictures_come_right_after_the_verdict_and_are_those_of_the_run() -> None:
    card = adapted(pictures=("evaluation/lab b 1.panel.jpg",))
    image = "![](get-artifact?path=evaluation%2Flab%20b%201.panel.jpg&run_uuid=1f2e)"
    assert card.index("## Gate") < card.index(image) < card.index("## Performance")
    assert "get-artifact" not in adapted(pictures=("a.jpg",), run_id=None)
