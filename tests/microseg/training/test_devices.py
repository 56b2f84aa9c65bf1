import pytest
import torch

from microseg.errors import SettingsError
from microseg.training.devices import make_fabric, resolve_device


def pretend(monkeypatch: pytest.MonkeyPatch, *, cuda: bool, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "best"), [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_takes_the_best_there_is(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, best: str) -> None:
    pretend(monkeypatch, cuda=cuda, mps=mps)
    assert resolve_device("auto") == best
    assert resolve_device("cpu") == "cpu"


def test_refuses_devices_that_are_unknown_or_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda=False, mps=False)
    with pytest.raises(SettingsError, match="Expected device cpu, cuda, mps or auto, got 'tpu'"):
        resolve_device("tpu")
    with pytest.raises(SettingsError, match=r"cuda was asked for.*set device to auto or cpu"):
        resolve_device("cuda")


def test_makes_a_fabric_on_the_cpu() -> None:
    fabric = make_fabric("cpu", precision="64-true")
    assert (fabric.device.type, fabric.world_size) == ("cpu", 1)


@pytest.mark.parametrize("wrong", [{"precision": "7-bit"}, {"devices": 0}])
def test_refuses_what_fabric_does_not_know(wrong: dict[str, object]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(SettingsError, match=f"{name}={value}"):
        make_fabric("cpu", **wrong)  # type: ignore[arg-type]
