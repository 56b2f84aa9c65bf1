import os
import pickle
from pathlib import Path

import pytest
import torch

from microseg.errors import TrainingError
from microseg.training.checkpoints import checkpoint_file, read_checkpoint, remove_checkpoints, write_checkpoint


def test_checkpoints_are_named_by_their_fingerprint(tmp_path: Path) -> None:
    folder = tmp_path / "lab_a"
    one, two = (checkpoint_file(folder, digit * 64) for digit in "1a")
    assert one.name == "lab_a.1111111111111111.checkpoint"
    others = [
        tmp_path / name
        for name in ("lab_a-lab_b.1111111111111111.checkpoint", "lab_a.v2.1111111111111111.checkpoint", "lab_a.json")
    ]
    for path in (one, two, tmp_path / "lab_a.checkpoint", *others):  # the third as microseg 0.1 named it
        path.touch()
    assert sorted(remove_checkpoints(folder, keep=one)) == sorted([two, tmp_path / "lab_a.checkpoint"])
    assert remove_checkpoints(folder) == [one]
    assert sorted(tmp_path.iterdir()) == sorted(others)


class Touch:
    """Creates a folder when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.file),)


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    state = {
        "fingerprint": "f",
        "weights": {"a": torch.arange(6.0).view(2, 3), "count": torch.tensor(7)},
        "step": 3,
        "evaluations": {2: {"score": 0.5}},
        "best": None,
        "best_score": -float("inf"),
    }
    write_checkpoint(tmp_path / "folder" / "c", state)
    got = read_checkpoint(tmp_path / "folder" / "c", fingerprint="f")
    assert torch.equal(got["weights"].pop("a"), state["weights"].pop("a"))  # type: ignore[attr-defined]
    assert got == state
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["c"]


def test_interrupted_write_keeps_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "c", {"fingerprint": "f", "step": 1})

    def die(state: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "c", {"fingerprint": "f", "step": 2})
    assert read_checkpoint(tmp_path / "c", fingerprint="f")["step"] == 1


def test_loading_a_checkpoint_executes_nothing(tmp_path: Path) -> None:
    for save, name in ((torch.save, "torch"), (lambda it, file: file.write_bytes(pickle.dumps(it)), "plain")):
        save({"fingerprint": "f", "step": Touch(tmp_path / "executed")}, tmp_path / name)
        with pytest.raises(TrainingError, match="damaged or another file"):
            read_checkpoint(tmp_path / name, fingerprint="f")
    assert not (tmp_path / "executed").exists()
    torch.load(tmp_path / "torch", weights_only=False)  # the trap itself works
    assert (tmp_path / "executed").exists()


def test_rejects_checkpoints_of_other_runs_and_other_files(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", {"fingerprint": "one"})
    with pytest.raises(TrainingError, match="other settings or data"):
        read_checkpoint(tmp_path / "c", fingerprint="another")
    (tmp_path / "broken").write_bytes((tmp_path / "c").read_bytes()[:50])
    with pytest.raises(TrainingError, match=r"Expected a checkpoint in .*damaged"):
        read_checkpoint(tmp_path / "broken", fingerprint="one")
    torch.save(torch.zeros(3), tmp_path / "tensor")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "weights")
    for name in ("tensor", "weights"):
        with pytest.raises(TrainingError, match=r"Expected a checkpoint in .*damaged"):
            read_checkpoint(tmp_path / name, fingerprint="one")
