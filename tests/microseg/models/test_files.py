import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from microseg.errors import WeightsError
from microseg.models.config import CONFIG_FILE, WEIGHTS_FILE, NetworkConfig
from microseg.models.encoder_weights import load_encoder_weights
from microseg.models.files import load_network, save_network
from microseg.models.network import PyramidSegmenter

CLASSES = ("background", "gland")


def small_network(**settings: Any) -> PyramidSegmenter:
    network = PyramidSegmenter(
        NetworkConfig(
            **{
                "classes": CLASSES,
                "encoder": "blocks",
                "channels": (4, 6),
                "pyramid_channels": 8,
                "mpp": 0.5,
                **settings,
            }
        )
    )
    with torch.no_grad():
        network(torch.rand(4, 3, 32, 32))  # batch statistics other than 0 and 1
    return network


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_network(tmp_path / "network", small_network())
    return tmp_path / "network"


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_round_trip_is_exact(tmp_path: Path, layout: torch.memory_format) -> None:
    network = small_network().to(memory_format=layout)
    save_network(tmp_path, network)
    loaded = load_network(tmp_path)
    assert loaded.config == network.config
    assert not loaded.training
    assert same(loaded.state_dict(), network.state_dict())
    x = torch.rand(2, 3, 30, 22)
    network.to(memory_format=torch.contiguous_format).eval()
    assert torch.equal(loaded(x), network(x))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([CONFIG_FILE, WEIGHTS_FILE])


def test_replaces_an_earlier_network(folder: Path) -> None:
    network = small_network(channels=(3, 3, 3))
    save_network(folder, network)
    assert same(load_network(folder).state_dict(), network.state_dict())


def test_failed_write_leaves_the_earlier_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_network(folder).state_dict()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fail)
        with pytest.raises(OSError, match="disk full"):
            save_network(folder, small_network())
    assert same(load_network(folder).state_dict(), before)
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("name", [WEIGHTS_FILE, CONFIG_FILE])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=name):
        load_network(folder)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated_weights(folder: Path, keep: int) -> None:
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match="complete safetensors file"):
        load_network(folder)


def test_flipped_bit_is_detected(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="another SHA-256"):
        load_network(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected a network's description"),
        ("[]", "expected a network of format 2 .* got 'list'"),
        ("{}", "expected a network of format 2 .* got None"),
        ('{"format": 1}', "expected a network of format 2 .* got 1, .*train the network again with this version"),
        ('{"format": 3}', "expected a network of format 2 .* got 3, .*update microseg"),
        ('{"format": 2}', "network's description"),
        ('{"format": 2, "weights_sha256": "", "config": {"classes": ["a"]}}', "2 to 255 classes"),
        ('{"format": 2, "weights_sha256": "", "config": {"classes": ["a", "b"], "evil": 1}}', "evil"),
        (
            '{"format": 2, "weights_sha256": "", "config": {"classes": ["a", "b"], "encoder": "x"}}',
            "cannot be built: .* got 'x'",
        ),
        (
            '{"format": 2, "weights_sha256": "", "config": {"classes": ["a", "b"], "encoder": "blocks", "head": "x"}}',
            "cannot be built: .*prediction head .* got 'x'",
        ),
    ],
)
def test_wrong_description(folder: Path, text: str, message: str) -> None:
    (folder / CONFIG_FILE).write_text(text)
    with pytest.raises(WeightsError, match=message):
        load_network(folder)


def test_description_that_is_not_text(folder: Path) -> None:
    (folder / CONFIG_FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WeightsError, match="expected a network's description"):
        load_network(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": [4, 6, 8]}, r"lacks decoder\.blocks\.2.* more"),
        ({"channels": [4]}, r"has unknown decoder\.blocks\.1.* more"),
        ({"classes": ["a", "b", "c"]}, r"has head\.classify\.bias \(2,\) instead of \(3,\), head\.classify\.weight"),
    ],
)
def test_weights_of_another_architecture(folder: Path, settings: dict[str, Any], message: str) -> None:
    card = json.loads((folder / CONFIG_FILE).read_text())
    card["config"].update(settings)
    (folder / CONFIG_FILE).write_text(json.dumps(card))
    with pytest.raises(WeightsError, match=message):
        load_network(folder)


def test_an_instance_head_of_an_earlier_microseg_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """Its interior had no gain: read by today's head, its objects would be separated wrongly."""
    folder = tmp_path / "network"
    save_network(folder, small_network(head="instance", instances=("gland",)))
    tensors = load_file(folder / WEIGHTS_FILE)
    earlier = {name.replace("interior_logit", "interior"): tensor for name, tensor in tensors.items()}
    assert earlier.keys() != tensors.keys()
    save_file(earlier, folder / WEIGHTS_FILE)
    card = json.loads((folder / CONFIG_FILE).read_text())
    card["weights_sha256"] = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    (folder / CONFIG_FILE).write_text(json.dumps(card))
    with pytest.raises(WeightsError, match=r"one of an earlier microseg.* train the network again"):
        load_network(folder)


class Bomb:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickle_is_not_executed(folder: Path, tmp_path: Path) -> None:
    torch.save({"head.classify.bias": torch.zeros(2), "bomb": Bomb(tmp_path / "exploded")}, folder / WEIGHTS_FILE)
    with pytest.raises(WeightsError):
        load_network(folder)
    with pytest.raises(WeightsError, match="tensors only"):
        load_encoder_weights(small_network(), folder / WEIGHTS_FILE)
    torch.save({"bomb": Bomb(tmp_path / "exploded")}, tmp_path / "body.pth")
    with pytest.raises(WeightsError, match="tensors only"):
        load_encoder_weights(small_network(), tmp_path / "body.pth")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    network = small_network()
    with torch.no_grad():
        next(network.decoder.parameters()).view(-1)[3] = value
    save_network(tmp_path, network)
    with pytest.raises(WeightsError, match=r"finite.*decoder"):
        load_network(tmp_path)


def test_a_description_of_a_huge_network_takes_no_memory(folder: Path) -> None:
    description = json.loads((folder / CONFIG_FILE).read_text())
    description["config"]["channels"] = [8192, 8192]
    (folder / CONFIG_FILE).write_text(json.dumps(description))
    with pytest.raises(WeightsError, match="instead of"):
        load_network(folder)


@pytest.mark.parametrize("text", ["[" * 9999, '{"format": NaN}', "\x00", '{"format": 2}', '{"format": 2, "config": 1}'])
def test_other_descriptions_are_refused(folder: Path, text: str) -> None:
    (folder / CONFIG_FILE).write_text(text)
    with pytest.raises(WeightsError):
        load_network(folder)
