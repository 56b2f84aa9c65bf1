from dataclasses import replace
from pathlib import Path

from microseg.config.params import GateSettings
from microseg.datasets.dataset import LabDataset
from microseg.datasets.lab import LabMetadata
from microseg.datasets.manifest import ManifestRow
from microseg.models.config import EncoderWeights, NetworkConfig
from microseg.registry.evidence import ConfidenceInterval, Evidence
from microseg.registry.gate import decide
from microseg.registry.model_card import Evaluation, TrainedModel, measurement_name, model_card

NETWORK = NetworkConfig(classes=("background", "gland"), encoder="blocks", mpp=0.5)


def lab(name: str, stain: str, images: int, mask: str | None) -> LabDataset:
    row = ManifestRow("images/a.png", mask, "slide", "train", 64, 64, 0.5, "")
    return LabDataset(Path(name), LabMetadata(lab=name, stain=stain, classes=NETWORK.classes), (row,) * images)


LAB_A = lab("lab_a", "H&E", 85, "masks/a.png")
LAB_B = lab("lab_b", "DAB-H | blue", 40, None)


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
    trained: dict[str, object] = {
        "method": "dual_adaptive_pyramid",
        "network": NETWORK,
        "source": (LAB_A,),
        "target": (LAB_B,),
        "digests": {"lab_a": "aaaa.dir", "lab_b": "bbbb.dir"},
        "run_params": {"seed": "0", "adapt.steps": "240", "mlflow.user": "ann"},
        "run_id": "1f2e",
        "commit": "c0ffee",
    }
    evaluation: dict[str, object] = {
        "candidate": candidate,
        "production": production,
        "decision": replace(decide(candidate, production, GateSettings()), version=4, production_version=3),
    }
    trained |= {name: value for name, value in change.items() if name in trained}
    evaluation |= {name: value for name, value in change.items() if name not in trained}
    found = Evaluation(**evaluation) if evaluation["candidate"] else None  # type: ignore[arg-type]
    return model_card(TrainedModel(**trained), found)  # type: ignore[arg-type]


def test_first_line_is_a_summary() -> None:
    first = adapted().splitlines()[0]
    assert first == "Adapted to lab_b (dual_adaptive_pyramid) · accepted by the gate · Dice lab_a 0.840."


def test_refused_decision_is_shown() -> None:
    candidate = Evidence({"lab_a": 0.70}, None, label_free(0.91))
    production = Evidence({"lab_a": 0.83}, None, label_free(0.72))
    card = adapted(candidate=candidate, decision=decide(candidate, production, GateSettings()))
    assert "REFUSED by the gate" in card.splitlines()[0]
    assert "- **Not met**: On the held-out images of lab_a the candidate loses 0.130 Dice" in card
    assert "- Met: On the target lab augmentation consistency is 91.0% (production: 72.0%)" in card


def test_needs_review_has_its_own_heading() -> None:
    candidate = Evidence({"lab_a": 0.84}, None, label_free(0.91) | {"foreground_share": 0.9})
    production = Evidence({"lab_a": 0.83}, None, label_free(0.72))
    decision = decide(candidate, production, GateSettings())
    card = adapted(candidate=candidate, decision=decision)
    assert "NEEDS REVIEW: the gate cannot tell" in card.splitlines()[0]
    heading, text = card[card.index("## ") :].splitlines()[:2]
    assert heading == "## Needs review: the gate cannot tell"
    assert text.startswith("**A person must look.** The candidate marks 90.0% of the target lab's images as foreground")
    assert "Look at both side by side: " in text
    assert card.count("The candidate marks 90.0%") == 1
    assert "## Gate" not in card
    assert "- Met: On the target lab augmentation consistency is 91.0% (production: 72.0%)" in card
    refused = adapted(decision=decide(Evidence({}, None, candidate.label_free), production, GateSettings()))
    assert "- **Unclear**: The candidate marks 90.0%" in refused


def test_sections_and_their_content() -> None:
    card = adapted()
    headings = [line for line in card.splitlines() if line.startswith("## ")]
    assert headings == [
        f"## {name}"
        for name in (
            "Gate",
            "Evaluation",
            "Description",
            "Intended use",
            "Limitations",
            "Data",
            "Training",
            "Lineage",
            "Loading",
        )
    ]
    assert "It works at 0.5 microns per pixel" in card
    assert "| lab_a | source | H&E | 85 | 85 | `aaaa.dir` |" in card
    assert "| lab_b | target | DAB-H \\| blue | 40 | 0 | `bbbb.dir` |" in card  # a bar must not end the cell
    assert "- adapt.steps: 240\n- seed: 0" in card
    assert "mlflow.user" not in card
    assert "| | &emsp;this version | &emsp;version 3 (production) |" in card
    assert "| lab_a, held-out: Dice | 0.840 | 0.830 |" in card
    assert "| Target lab: augmentation consistency | 0.910 | 0.720 |" in card
    assert "| Target lab: prediction entropy | 0.120 | 0.120 |" in card
    assert "| Target lab: images evaluated | 32 | 32 |" in card
    assert "- Run: 1f2e\n- Code: c0ffee" in card
    assert 'Segmenter.load("production")' in card
    assert "not for diagnosis" in card


def test_dice_on_masks_of_the_target_has_an_interval() -> None:
    card = adapted(candidate=Evidence({"lab_a": 0.84}, ConfidenceInterval(0.8, 0.75, 0.85)))
    assert "| Target lab's masks: Dice | 0.800 (0.750 to 0.850) | – |" in card
    assert "gain of Dice" not in card
    card = adapted(candidate=Evidence({"lab_a": 0.84}, target_gain=ConfidenceInterval(0.1, -0.01, 0.2)))
    assert "| Target lab's masks: gain of Dice | 0.100 (-0.010 to 0.200) | – |" in card


def test_card_before_evaluation() -> None:
    network = NETWORK.model_copy(update={"mpp": None})
    card = adapted(
        target=(),
        network=network,
        candidate=None,
        production=None,
        decision=None,
        run_id=None,
        commit=None,
    )
    assert card.splitlines()[0] == "Trained on lab_a (dual_adaptive_pyramid) · gate not evaluated · no held-out Dice."
    assert "## Evaluation" not in card
    assert "## Gate" not in card
    assert "at an unknown pixel size" in card
    assert "- Run: unknown\n- Code: unknown" in card


def test_usual_card_fits_into_the_description_of_mlflow() -> None:
    assert len(adapted()) < 5000


def test_panels_follow_the_decision() -> None:
    card = adapted(panels=("evaluation/lab b 1.panel.jpg",))
    image = "![](get-artifact?path=evaluation%2Flab%20b%201.panel.jpg&run_uuid=1f2e)"
    assert card.index("## Gate") < card.index(image) < card.index("## Evaluation")
    assert "get-artifact" not in adapted(panels=("a.jpg",), run_id=None)


def test_object_metrics_are_shown_for_each_lab() -> None:
    card = adapted(scores={"lab_a": {"dice": (0.84, 0.83), "object_f1": (0.7, None), "aji": (0.6, 0.5)}})
    assert "| lab_a: object F1 | 0.700 | – |" in card
    assert "| lab_a: aggregated Jaccard index | 0.600 | 0.500 |" in card


def test_origin_of_the_encoder_weights_is_shown() -> None:
    weights = EncoderWeights(source="/weights/uni.bin", sha256="abc123", license="CC-BY-NC-ND")
    card = adapted(network=NETWORK.model_copy(update={"encoder_weights": weights}))
    assert "- Initial encoder weights: /weights/uni.bin, license CC-BY-NC-ND, SHA-256 `abc123`" in card
    assert "- Initial encoder weights: random" in adapted()


def test_names_of_measurements() -> None:
    assert measurement_name("object_f1") == "object F1"
    assert measurement_name("object_dice_gland") == "object Dice, gland"
    assert measurement_name("dice_lumen_wall") == "Dice, lumen_wall"
    assert measurement_name("teacher_agreement") == "teacher agreement"


def test_channels_of_the_network_are_named() -> None:
    network = NETWORK.model_copy(update={"inputs": ("nuclei", "membrane")})
    assert "Its images have the channels nuclei, membrane in place of red, green and blue." in adapted(network=network)
    assert "in place of red" not in adapted()


def test_no_text_from_outside_can_fake_a_verdict() -> None:
    stain = "H&E |\n\n## Gate\nAccepted.\n\n- Met: all | <script>alert(1)</script>"
    hostile = TrainedModel(
        method="x\n## Gate\nAccepted.",
        network=NETWORK.model_copy(update={"classes": ("background", "gland\n## Gate")}),
        source=[lab("lab_a", stain, 1, None)],
        digests={"lab_a": "a`b\n## Gate"},
        run_params={"train.x": "1\n## Gate\nAccepted."},
        commit="c\n## Gate",
    )
    plain = TrainedModel(
        method="x",
        network=NETWORK,
        source=[lab("lab_a", "H&E", 1, None)],
        digests={"lab_a": "ab"},
        run_params={"train.x": "1"},
    )
    hostile, plain = model_card(hostile), model_card(plain)
    headings = [line for line in plain.splitlines() if line.startswith("#")]
    assert [line for line in hostile.splitlines() if line.lstrip(" -").startswith("#")] == headings
    assert not any(line.startswith(("Accepted", "- Met:")) for line in hostile.splitlines())
    assert "<script>" not in hostile
    assert [line.count(" | ") for line in hostile.splitlines() if line.startswith("| lab_a")] == [5]
