import os
import pickle
from pathlib import Path

import pytest
import torch

from microseg.errors import TrainingError
from microseg.training.checkpoint import read_checkpoint, write_checkpoint


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.file),)


def test_reads_back_what_was_written(tmp_path: Path) -> None:
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


def test_an_interrupted_write_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "c", {"fingerprint": "f", "step": 1})

    def die(state: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "c", {"fingerprint": "f", "step": 2})
    assert read_checkpoint(tmp_path / "c", fingerprint="f")["step"] == 1


def test_executes_nothing(tmp_path: Path) -> None:
    for save, name in ((torch.save, "torch"), (lambda it, file: file.write_bytes(pickle.dumps(it)), "plain")):
        save({"fingerprint": "f", "step": Touch(tmp_path / "executed")}, tmp_path / name)
        with pytest.raises(TrainingError, match="damaged or something else: delete it to start again"):
            read_checkpoint(tmp_path / name, fingerprint="f")
    assert not (tmp_path / "executed").exists()
    torch.load(tmp_path / "torch", weights_only=False)  # the trap itself works
    assert (tmp_path / "executed").exists()


def test_refuses_what_is_no_checkpoint_of_this_run(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", {"fingerprint": "one"})
    with pytest.raises(TrainingError, match="other settings or data: delete it, or choose another folder"):
        read_checkpoint(tmp_path / "c", fingerprint="another")
    (tmp_path / "broken").write_bytes((tmp_path / "c").read_bytes()[:50])
    with pytest.raises(TrainingError, match=r"Expected a checkpoint in .*delete it"):
        read_checkpoint(tmp_path / "broken", fingerprint="one")
    torch.save(torch.zeros(3), tmp_path / "tensor")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "weights")
    for name in ("tensor", "weights"):
        with pytest.raises(TrainingError, match=r"Expected a checkpoint in .*delete it"):
            read_checkpoint(tmp_path / name, fingerprint="one")
