import hashlib
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from microseg.errors import WeightsError
from microseg.models.config import WEIGHTS_FILE, NetworkConfig
from microseg.models.encoder_weights import load_encoder_weights
from microseg.models.files import load_network, save_network
from microseg.models.network import PyramidSegmenter

CLASSES = ("background", "gland")


def small_network(**settings: Any) -> PyramidSegmenter:
    values = {"classes": CLASSES, "encoder": "blocks", "channels": (4, 6), "pyramid_channels": 8}
    return PyramidSegmenter(NetworkConfig(**values | settings))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def classifier() -> dict[str, Tensor]:
    """Weights of a ResNet18 classifier, with the names of torchvision and timm."""
    state: dict[str, Tensor] = timm.create_model("resnet18").state_dict()
    return state


def resnet() -> PyramidSegmenter:
    return PyramidSegmenter(NetworkConfig(classes=CLASSES, encoder="resnet18"))


def check_resnet(network: PyramidSegmenter, classifier: dict[str, Tensor]) -> None:
    encoder = network.encoder.state_dict()
    assert all(torch.equal(encoder[f"body.{name}"], value) for name, value in classifier.items() if "fc." not in name)


@pytest.mark.parametrize("kind", ["pth", "nested", "prefixed", "safetensors"])
def test_weights_of_a_classifier(tmp_path: Path, classifier: dict[str, Tensor], kind: str) -> None:
    path = tmp_path / "body.pth"
    if kind == "pth":
        torch.save(classifier, path)
    elif kind == "nested":
        torch.save({"epoch": 3, "state_dict": classifier}, path)
    elif kind == "prefixed":
        reversed_ = reversed(classifier.items())  # so that the order does not help
        torch.save({f"module.backbone.{name}": value for name, value in reversed_}, path)
    else:
        path = tmp_path / "body.safetensors"
        save_file(classifier, path)
    network = resnet()
    origin = load_encoder_weights(network, path)
    check_resnet(network, classifier)
    assert origin.model_dump() == {"source": path.name, "sha256": digest(path), "license": "not stated"}


def test_tensors_with_other_names_are_matched_by_order(tmp_path: Path, classifier: dict[str, Tensor]) -> None:
    torch.save({f"tensor_{i}": value for i, value in enumerate(classifier.values())}, tmp_path / "body.pth")
    network = resnet()
    with pytest.raises(WeightsError, match="lacks"):  # the batch counters are tensors, too
        load_encoder_weights(network, tmp_path / "body.pth")
    renamed = {name: value for name, value in classifier.items() if "num_batches" not in name}
    torch.save({f"tensor_{i}": value for i, value in enumerate(renamed.values())}, tmp_path / "body.pth")
    load_encoder_weights(network, tmp_path / "body.pth")
    check_resnet(network, {name: value for name, value in renamed.items() if "fc." not in name})


def test_weights_of_another_network_of_microseg(tmp_path: Path) -> None:
    first, second = small_network(), small_network(classes=("a", "b", "c"))
    save_network(tmp_path, first)
    load_encoder_weights(second, tmp_path / WEIGHTS_FILE)
    ours, theirs = first.encoder.state_dict(), second.encoder.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if "num_batches" not in name)


def test_rejects_weights_of_another_encoder(tmp_path: Path, classifier: dict[str, Tensor]) -> None:
    save_file(classifier, tmp_path / "body.safetensors")
    network = small_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(WeightsError, match=r"'blocks' encoder, .* lacks blocks\.0.* and 16 more"):
        load_encoder_weights(network, tmp_path / "body.safetensors")
    wrong = {**classifier, "layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}
    save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(WeightsError, match=r"layer1\.0\.conv1\.weight \(64, 64, 1, 1\) instead of \(64, 64, 3, 3\)"):
        load_encoder_weights(resnet(), tmp_path / "wrong.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("content", [b"", b"not a file of tensors", None])
def test_rejects_unreadable_file(tmp_path: Path, content: bytes | None) -> None:
    for name in ("body.pth", "body.safetensors"):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=r"cannot read .*body"):
            load_encoder_weights(small_network(), tmp_path / name)


def test_rejects_file_without_tensors(tmp_path: Path) -> None:
    torch.save([1, 2, 3], tmp_path / "body.pth")
    with pytest.raises(WeightsError, match="holds list"):
        load_encoder_weights(small_network(), tmp_path / "body.pth")


def test_imagenet_weights_come_from_the_hub(monkeypatch: pytest.MonkeyPatch, classifier: dict[str, Tensor]) -> None:
    network = resnet()
    create = timm.create_model

    def hub(name: str, *, features_only: bool, pretrained: bool, **options: Any) -> Any:
        assert (name, features_only, pretrained) == ("resnet18", True, True)
        body = create(name, features_only=True, **options)
        body.load_state_dict(classifier, strict=False)
        return body

    monkeypatch.setattr(timm, "create_model", hub)
    origin = load_encoder_weights(network, "imagenet")
    check_resnet(network, classifier)
    assert (origin.source, origin.license) == ("timm: timm/resnet18.a1_in1k", "apache-2.0")


def test_unreachable_hub_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    network = resnet()

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(WeightsError, match="give the path of a local"):
        load_encoder_weights(network, "imagenet")
    with pytest.raises(WeightsError, match="'blocks', which has none"):
        load_encoder_weights(small_network(), "imagenet")


def test_origin_and_license_are_kept_with_the_network(tmp_path: Path, classifier: dict[str, Tensor]) -> None:
    save_file(classifier, tmp_path / "body.safetensors")
    network = resnet()
    assert network.config.encoder_weights is None
    origin = load_encoder_weights(network, tmp_path / "body.safetensors", license="CC-BY-4.0")
    assert origin.license == "CC-BY-4.0"
    save_network(tmp_path / "network", network)
    assert load_network(tmp_path / "network").config.encoder_weights == origin


def test_weights_of_a_vision_transformer_leave_the_feature_pyramid(tmp_path: Path) -> None:
    state = timm.create_model("vit_tiny_patch16_224").state_dict()
    save_file(state, tmp_path / "vit.safetensors")
    network = PyramidSegmenter(NetworkConfig(classes=CLASSES, encoder="vit_tiny_patch16_224"))
    before = {name: value.clone() for name, value in network.encoder.state_dict().items() if "pyramid" in name}
    load_encoder_weights(network, tmp_path / "vit.safetensors")
    after = network.encoder.state_dict()
    assert before
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(after["body.model.blocks.3.attn.qkv.weight"], state["blocks.3.attn.qkv.weight"])
