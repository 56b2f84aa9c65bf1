import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from microseg.errors import WeightsError
from microseg.models.config import NetworkConfig
from microseg.models.file_names import CONFIG_FILE, WEIGHTS_FILE
from microseg.models.files import load_encoder_weights, load_network, save_network
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
def test_comes_back_bit_by_bit(tmp_path: Path, layout: torch.memory_format) -> None:
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


def test_a_write_that_fails_leaves_the_earlier_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    with pytest.raises(WeightsError, match="whole safetensors file"):
        load_network(folder)


def test_one_flipped_bit(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="another SHA-256"):
        load_network(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON"),
        ("[]", "expected format 1 .* got 'list'"),
        ("{}", "expected format 1 .* got None"),
        ('{"format": 2}', "expected format 1 .* got 2"),
        ('{"format": 1}', "network's description"),
        ('{"format": 1, "weights_sha256": "", "config": {"classes": ["a"]}}', "2 to 255 classes"),
        ('{"format": 1, "weights_sha256": "", "config": {"classes": ["a", "b"], "evil": 1}}', "evil"),
        (
            '{"format": 1, "weights_sha256": "", "config": {"classes": ["a", "b"], "encoder": "x"}}',
            "cannot be built: .* got 'x'",
        ),
    ],
)
def test_wrong_description(folder: Path, text: str, message: str) -> None:
    (folder / CONFIG_FILE).write_text(text)
    with pytest.raises(WeightsError, match=message):
        load_network(folder)


def test_not_even_text(folder: Path) -> None:
    (folder / CONFIG_FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WeightsError, match="expected JSON"):
        load_network(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": [4, 6, 8]}, r"lacks decoder\.blocks\.2.* more"),
        ({"channels": [4]}, r"has unknown decoder\.blocks\.1.* more"),
        ({"classes": ["a", "b", "c"]}, r"has head\.bias \(2,\) instead of \(3,\), head\.weight"),
    ],
)
def test_weights_of_another_architecture(folder: Path, settings: dict[str, Any], message: str) -> None:
    card = json.loads((folder / CONFIG_FILE).read_text())
    card["config"].update(settings)
    (folder / CONFIG_FILE).write_text(json.dumps(card))
    with pytest.raises(WeightsError, match=message):
        load_network(folder)


class Bomb:
    """Makes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_is_not_executed(folder: Path, tmp_path: Path) -> None:
    torch.save({"head.bias": torch.zeros(2), "bomb": Bomb(tmp_path / "exploded")}, folder / WEIGHTS_FILE)
    with pytest.raises(WeightsError):
        load_network(folder)
    with pytest.raises(WeightsError, match="tensors only"):
        load_encoder_weights(small_network(), folder / WEIGHTS_FILE)
    torch.save({"bomb": Bomb(tmp_path / "exploded")}, tmp_path / "body.pth")
    with pytest.raises(WeightsError, match="tensors only"):
        load_encoder_weights(small_network(), tmp_path / "body.pth")
    assert not (tmp_path / "exploded").exists()


@pytest.fixture(scope="module")
def classifier() -> dict[str, Tensor]:
    """Weights of a whole ResNet18, as torchvision and timm name them."""
    state: dict[str, Tensor] = timm.create_model("resnet18").state_dict()
    return state


def resnet() -> PyramidSegmenter:
    return PyramidSegmenter(NetworkConfig(classes=CLASSES, encoder="resnet18"))


def check_resnet(network: PyramidSegmenter, classifier: dict[str, Tensor]) -> None:
    encoder = network.encoder.state_dict()
    assert all(torch.equal(encoder[f"body.{name}"], value) for name, value in classifier.items() if "fc." not in name)


@pytest.mark.parametrize("kind", ["pth", "nested", "prefixed", "safetensors"])
def test_encoder_from_a_classifiers_file(tmp_path: Path, classifier: dict[str, Tensor], kind: str) -> None:
    path = tmp_path / "body.pth"
    if kind == "pth":
        torch.save(classifier, path)
    elif kind == "nested":
        torch.save({"epoch": 3, "state_dict": classifier}, path)
    elif kind == "prefixed":
        turned = reversed(classifier.items())  # so that only the names can tell
        torch.save({f"module.backbone.{name}": value for name, value in turned}, path)
    else:
        path = tmp_path / "body.safetensors"
        save_file(classifier, path)
    network = resnet()
    report = load_encoder_weights(network, path)
    check_resnet(network, classifier)
    assert len(report.matched) == 100
    assert sorted(name.rpartition("fc.")[2] for name in report.unused) == ["bias", "weight"]


def test_encoder_by_order_where_the_names_are_foreign(tmp_path: Path, classifier: dict[str, Tensor]) -> None:
    torch.save({f"tensor_{i}": value for i, value in enumerate(classifier.values())}, tmp_path / "body.pth")
    network = resnet()
    with pytest.raises(WeightsError, match="lacks"):  # the counters of batches are tensors as well here
        load_encoder_weights(network, tmp_path / "body.pth")
    foreign = {name: value for name, value in classifier.items() if "num_batches" not in name}
    torch.save({f"tensor_{i}": value for i, value in enumerate(foreign.values())}, tmp_path / "body.pth")
    report = load_encoder_weights(network, tmp_path / "body.pth")
    check_resnet(network, {name: value for name, value in foreign.items() if "fc." not in name})
    assert report.unused == ("tensor_100", "tensor_101")


def test_encoder_from_another_network_of_ours(tmp_path: Path) -> None:
    first, second = small_network(), small_network(classes=("a", "b", "c"))
    save_network(tmp_path, first)
    load_encoder_weights(second, tmp_path / WEIGHTS_FILE)
    ours, theirs = first.encoder.state_dict(), second.encoder.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if "num_batches" not in name)


def test_encoder_of_another_kind_is_refused(tmp_path: Path, classifier: dict[str, Tensor]) -> None:
    save_file(classifier, tmp_path / "body.safetensors")
    network = small_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(WeightsError, match=r"'blocks' encoder, .* lacks blocks\.0.* and 16 more"):
        load_encoder_weights(network, tmp_path / "body.safetensors")
    wrong = {**classifier, "layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}
    save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(WeightsError, match=r"layer1\.0\.conv1\.weight \(64, 64, 1, 1\) instead of \(64, 64, 3, 3\)"):
        load_encoder_weights(resnet(), tmp_path / "wrong.safetensors")
    assert same(network.state_dict(), before)


@pytest.mark.parametrize("content", [b"", b"not a file of tensors", None])
def test_unreadable_encoder_file(tmp_path: Path, content: bytes | None) -> None:
    for name in ("body.pth", "body.safetensors"):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=r"cannot read .*body"):
            load_encoder_weights(small_network(), tmp_path / name)


def test_a_file_without_tensors(tmp_path: Path) -> None:
    torch.save([1, 2, 3], tmp_path / "body.pth")
    with pytest.raises(WeightsError, match="holds list"):
        load_encoder_weights(small_network(), tmp_path / "body.pth")


def test_imagenet_comes_from_the_hub(monkeypatch: pytest.MonkeyPatch, classifier: dict[str, Tensor]) -> None:
    network = resnet()
    create = timm.create_model

    def hub(name: str, *, features_only: bool, pretrained: bool) -> Any:
        assert (name, features_only, pretrained) == ("resnet18", True, True)
        body = create(name, features_only=True)
        body.load_state_dict(classifier, strict=False)
        return body

    monkeypatch.setattr(timm, "create_model", hub)
    load_encoder_weights(network, "imagenet")
    check_resnet(network, classifier)


def test_imagenet_without_a_hub_asks_for_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    network = resnet()

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(WeightsError, match="give the path of a local"):
        load_encoder_weights(network, "imagenet")
    with pytest.raises(WeightsError, match="'blocks', which has none"):
        load_encoder_weights(small_network(), "imagenet")
