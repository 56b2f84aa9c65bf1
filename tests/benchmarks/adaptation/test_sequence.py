from pathlib import Path

import pytest

from benchmarks.adaptation.sequence import STEPS, LabSequence, main


def test_steps_start_from_earlier_steps() -> None:
    known = {"first"}
    for step in STEPS:
        assert step.start in known
        known.add(step.name)


@pytest.mark.long
def test_sequence_is_reported_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = [
        "network.encoder=blocks",
        "network.channels=[4,8]",
        "network.weights=null",
        "train.steps=2",
        "train.crop_size=32",
    ]
    arguments = ["--out", str(tmp_path), "--minutes", "0.02", "--images", "8", "--set", *tiny, "adapt.crop_size=32"]
    main(arguments)
    rows = LabSequence(tmp_path).rows
    assert [row["step"] for row in rows] == ["first", *(step.name for step in STEPS)]
    assert all(0 <= row[lab] <= 1 for row in rows for lab in ("lab_a", "lab_b", "lab_c"))
    main(arguments)  # nothing is computed again
    assert LabSequence(tmp_path).rows == rows
    assert "to both together" in capsys.readouterr().out
