import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from microseg.errors import ModelError
from microseg.models.losses import domain_loss, segmentation_loss


def naive_loss(
    logits: npt.NDArray[np.float64],
    target: npt.NDArray[np.int64],
    alpha: float,
) -> float:
    """The loss pixel by pixel, in plain Python."""
    batch, classes, height, width = logits.shape
    entropy, norm = 0.0, 0.0
    overlap, predicted, referred = np.zeros(classes), np.zeros(classes), np.zeros(classes)
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                label = target[b, i, j]
                if label == 255:
                    continue
                exponentials = [math.exp(logits[b, k, i, j]) for k in range(classes)]
                shares = [value / sum(exponentials) for value in exponentials]
                entropy -= math.log(shares[label])
                norm += 1
                referred[label] += 1
                overlap[label] += shares[label]
                for k in range(classes):
                    predicted[k] += shares[k]
    if norm == 0:
        return 0.0
    scores = [2 * overlap[k] / (predicted[k] + referred[k]) for k in range(classes) if referred[k] > 0]
    return float(entropy / norm + alpha * (1 - sum(scores) / len(scores)))


def rewritten_loss(logits: Tensor, target: Tensor, alpha: float) -> Tensor:
    """The same formula on a list of pixels, class by class."""
    pixels = logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1])[target.reshape(-1) != 255]  # (N, K)
    labels = target.reshape(-1)[target.reshape(-1) != 255]  # (N,)
    shares = torch.exp(pixels) / torch.exp(pixels).sum(1, keepdim=True)  # (N, K)
    entropy = -torch.stack([torch.log(shares[n, label]) for n, label in enumerate(labels)]).mean()
    scores = []
    for k in torch.unique(labels):
        chosen = labels == k
        scores.append(2 * shares[chosen, k].sum() / (shares[:, k].sum() + chosen.sum()))
    return entropy + alpha * (1 - torch.stack(scores).mean())


def soft_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Soft Dice: what the Dice term subtracts from 1."""
    return 1 - (segmentation_loss(logits, target, dice_weight=1) - segmentation_loss(logits, target, dice_weight=0))


@st.composite
def cases(draw: st.DrawFn) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    batch, classes = draw(st.integers(1, 3)), draw(st.integers(2, 4))
    height, width = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = [*range(classes), 255]
    return rng.normal(scale=3, size=(batch, classes, height, width)), rng.choice(labels, size=(batch, height, width))


def test_two_pixels_by_hand() -> None:
    # p(foreground) = 3/4 on the foreground pixel and 1/4 on the background pixel
    logits = torch.tensor([[[[0.0, math.log(3)]], [[math.log(3), 0.0]]]])  # (1, 2, 1, 2)
    target = torch.tensor([[[1, 0]]])  # (1, 1, 2)
    # Dice of each class: 2 · 3/4 / (1 + 1) = 3/4
    assert soft_dice(logits, target).item() == pytest.approx(0.75)
    assert segmentation_loss(logits, target, dice_weight=2.0).item() == pytest.approx(-math.log(0.75) + 2 * 0.25)


def test_absent_classes_do_not_count_in_dice() -> None:
    logits = torch.zeros(1, 3, 1, 1)  # p = 1/3 each
    # only class 2 is present: 2 · 1/3 / (1/3 + 1) = 1/2
    assert soft_dice(logits, torch.full((1, 1, 1), 2)).item() == pytest.approx(0.5)


@settings(max_examples=40)
@given(cases(), st.floats(0, 3))
def test_value_equals_plain_python(case: tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]], alpha: float) -> None:
    logits, target = case
    tensors = torch.from_numpy(logits), torch.from_numpy(target)
    assert segmentation_loss(*tensors, dice_weight=alpha).item() == pytest.approx(naive_loss(logits, target, alpha))


@settings(max_examples=25)
@given(cases(), st.floats(0, 3))
def test_gradient_equals_independent_implementation(
    case: tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]], alpha: float
) -> None:
    logits, target = torch.from_numpy(case[0]).requires_grad_(), torch.from_numpy(case[1])
    if not bool((target != 255).any()):
        return
    (ours,) = torch.autograd.grad(segmentation_loss(logits, target, dice_weight=alpha), logits)
    (theirs,) = torch.autograd.grad(rewritten_loss(logits, target, alpha), logits)
    torch.testing.assert_close(ours, theirs)


def test_gradient_equals_finite_differences() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[[0, 1, 255], [1, 1, 0]], [[0, 0, 0], [1, 255, 0]]])
    assert torch.autograd.gradcheck(lambda x: segmentation_loss(x, target, dice_weight=0.7), logits)
    assert torch.autograd.gradcheck(lambda x: soft_dice(x, target), logits)


@settings(max_examples=25)
@given(cases())
def test_ignored_pixels_do_not_change_the_loss(case: tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]) -> None:
    logits, target = torch.from_numpy(case[0]), torch.from_numpy(case[1])
    ignored = (target == 255).unsqueeze(1).expand_as(logits)
    changed = torch.where(ignored, 50 - logits, logits).requires_grad_()
    loss = segmentation_loss(changed, target)
    assert loss.item() == segmentation_loss(logits, target).item()
    loss.backward()
    assert changed.grad is not None
    assert not changed.grad[ignored].any()


def test_all_ignored_is_zero_with_a_gradient() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    target = torch.full((2, 4, 4), 255, dtype=torch.uint8)
    loss = segmentation_loss(logits, target)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()
    assert soft_dice(logits, target).item() == 1


def test_perfect_prediction_has_zero_loss() -> None:
    target = torch.tensor([[[0, 1], [2, 255]]], dtype=torch.uint8)
    logits = torch.stack([torch.where(target == k, 60.0, -60.0) for k in range(3)], dim=1)
    assert segmentation_loss(logits, target).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("logits", "target", "options", "message"),
    [
        (torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 5, dtype=torch.long), {}, "of the same size"),
        (torch.zeros(2, 4, 4), torch.zeros(4, 4, dtype=torch.long), {}, "of the same size"),
        (torch.zeros(1, 2, 1, 1), torch.full((1, 1, 1), 2), {}, r"indices 0\.\.1, or 255 .* got 2\.\.2"),
        (
            torch.zeros(1, 2, 1, 1),
            torch.zeros(1, 1, 1, dtype=torch.long),
            {"dice_weight": -1.0},
            "dice_weight of 0 or more",
        ),
    ],
)
def test_rejects_invalid_arguments(logits: Tensor, target: Tensor, options: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        segmentation_loss(logits, target, **options)  # type: ignore[arg-type]


def test_domain_loss_by_hand() -> None:
    logits = torch.tensor([[math.log(3)]])  # p(target) = 3/4
    assert domain_loss(logits, True).item() == pytest.approx(-math.log(0.75))
    assert domain_loss(logits, False).item() == pytest.approx(-math.log(0.25))
    assert domain_loss(torch.zeros(2, 1, 5, 5), True).item() == pytest.approx(math.log(2))


@settings(max_examples=30)
@given(st.lists(st.floats(-20, 20), min_size=1, max_size=8), st.booleans())
def test_domain_loss_and_gradient_equal_the_formula(values: list[float], target: bool) -> None:
    logits = torch.tensor(values, dtype=torch.float64).view(-1, 1).requires_grad_()
    loss = domain_loss(logits, target)
    loss.backward()
    signs = [-1 if target else 1] * len(values)
    expected = sum(math.log1p(math.exp(s * v)) for s, v in zip(signs, values, strict=True)) / len(values)
    assert loss.item() == pytest.approx(expected)
    slopes = [(1 / (1 + math.exp(-v)) - float(target)) / len(values) for v in values]  # (σ(x) − y) / N
    assert logits.grad is not None
    assert logits.grad.ravel().tolist() == pytest.approx(slopes)
