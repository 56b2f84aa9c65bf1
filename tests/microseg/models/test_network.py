import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from microseg.errors import ModelError
from microseg.evaluation.overlap import dice
from microseg.models.config import NetworkConfig
from microseg.models.losses import segmentation_loss
from microseg.models.network import PyramidSegmenter


def small_network(classes: int = 2, channels: tuple[int, ...] = (4, 6), encoder: str = "blocks") -> PyramidSegmenter:
    torch.manual_seed(0)
    names = tuple(f"class {k}" for k in range(classes))
    return PyramidSegmenter(NetworkConfig(classes=names, encoder=encoder, channels=channels, pyramid_channels=8)).eval()


def with_statistics(network: PyramidSegmenter) -> PyramidSegmenter:
    """Give batch normalization statistics other than 0 and 1."""
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(4, 3, 32, 32))
    return network.eval()


@settings(max_examples=40)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(2, 5),
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
)
@torch.no_grad()
def test_any_size_classes_and_depth(height: int, width: int, classes: int, channels: list[int]) -> None:
    logits = small_network(classes, tuple(channels))(torch.rand(2, 3, height, width))
    assert logits.shape == (2, classes, height, width)
    assert logits.isfinite().all()


@settings(max_examples=25)
@given(st.integers(1, 30), st.integers(1, 30))
@torch.no_grad()
def test_pads_by_reflection_and_crops_back(height: int, width: int) -> None:
    network = small_network()
    image = torch.rand(1, 3, height, width)
    padded = image.numpy()
    for axis, size in ((2, height), (3, width)):
        missing = -size % 4
        widths = [(0, 0)] * 4
        widths[axis] = (0, missing)
        padded = np.pad(padded, widths, mode="reflect" if missing < size else "edge")
    expected = network(torch.from_numpy(padded))[..., :height, :width]
    torch.testing.assert_close(network(image), expected)


@torch.no_grad()
def test_head_before_upsampling_equals_head_after_upsampling() -> None:
    network = with_statistics(small_network())
    features = network.features(torch.rand(2, 3, 24, 32))
    after = network.head([functional.interpolate(features.decoder[-1], scale_factor=2, mode="bilinear")])
    torch.testing.assert_close(features.logits, after)
    assert features.pyramid.shape == (2, 8, 6, 8)
    assert [level.shape[-1] for level in features.decoder] == [8, 16]


@torch.no_grad()
def test_normalizes_its_input() -> None:
    network = with_statistics(small_network())
    bare = PyramidSegmenter(network.config.model_copy(update={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})).eval()
    bare.load_state_dict(network.state_dict())
    x = torch.rand(1, 3, 16, 16)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalized = (x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    torch.testing.assert_close(network(x), bare(normalized))


@torch.no_grad()
def test_images_of_a_batch_are_independent_in_either_memory_format() -> None:
    network = with_statistics(small_network())
    x = torch.rand(3, 3, 20, 28)
    together = network(x)
    torch.testing.assert_close(together[1:2], network(x[1:2]))
    turned = network.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(together, turned, atol=1e-5, rtol=1e-4)


def test_state_dict_has_no_domain_classifiers() -> None:
    network = small_network()
    assert {name.split(".")[0] for name in network.state_dict()} == {"encoder", "pyramid", "decoder", "head"}


def test_every_parameter_gets_a_gradient() -> None:
    network = small_network().train()
    segmentation_loss(network(torch.rand(2, 3, 32, 32)), torch.randint(0, 2, (2, 32, 32))).backward()
    silent = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert silent == []


def test_trains_on_one_image_larger_than_the_stride() -> None:
    network = small_network().train()
    segmentation_loss(network(torch.rand(1, 3, 5, 3)), torch.randint(0, 2, (1, 5, 3))).backward()
    with pytest.raises(ModelError, match="larger than 4 px"):
        network(torch.rand(1, 3, 4, 3))


@pytest.mark.parametrize(("encoder", "size"), [("blocks", 50), ("resnet18", 64)])
@torch.no_grad()
def test_exports_with_a_free_batch_axis(encoder: str, size: int) -> None:
    network = small_network(encoder=encoder)
    batch = torch.export.Dim("batch")
    program = torch.export.export(network, (torch.rand(2, 3, size, size),), dynamic_shapes={"x": {0: batch}})
    for count in (1, 5):
        x = torch.rand(count, 3, size, size)
        torch.testing.assert_close(program.module()(x), network(x))


@pytest.mark.parametrize(
    "x",
    [
        torch.rand(3, 8, 8),
        torch.rand(1, 4, 8, 8),
        torch.rand(1, 8, 8, 3),
        torch.rand(1, 3, 0, 8),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
    ],
)
def test_rejects_invalid_inputs(x: torch.Tensor) -> None:
    with pytest.raises(ModelError, match=r"float batch \(B, 3, H, W\)"):
        small_network()(x)


def test_overfits_one_image() -> None:
    """A bright disc on a textured background, after 40 steps of a network of two blocks."""
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
    mask = ((rows - 20) ** 2 + (columns - 26) ** 2 < 144).long().unsqueeze(0)  # (1, 48, 48)
    image = 0.4 + 0.3 * mask.unsqueeze(1) * torch.tensor([1.0, 0.2, 0.6]).view(1, 3, 1, 1)
    image = (image + 0.1 * torch.randn(1, 3, 48, 48)).clamp(0, 1)
    network = small_network(channels=(8, 16)).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = segmentation_loss(network(image), mask)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    network.eval()
    prediction = network(image).argmax(dim=1)[0].numpy().astype(np.uint8)
    assert dice(prediction, mask[0].numpy().astype(np.uint8), 2)[1] > 0.95
    assert losses[-1] < 0.2 * losses[0]
