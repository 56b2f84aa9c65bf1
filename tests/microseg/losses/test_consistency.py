import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microseg.errors import ModelError
from microseg.losses import consistency_loss


def test_by_hand() -> None:
    student = torch.tensor([[[[0.0, 0.0]], [[0.0, math.log(3)]]]])  # p(1) = 1/2, 3/4
    teacher = torch.tensor([[[[0.1, 0.4]], [[0.9, 0.6]]]])
    loss, used = consistency_loss(student, teacher, threshold=0.8)
    assert used == 0.5
    assert loss.item() == pytest.approx(math.log(2) / 2)
    loss, used = consistency_loss(student, teacher, threshold=0.0)
    assert used == 1
    assert loss.item() == pytest.approx((math.log(2) - math.log(0.75)) / 2)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.floats(0, 1))
def test_value_and_gradient_equal_plain_loops(seed: int, classes: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(2, classes, 3, 2))
    teacher = rng.dirichlet(np.ones(classes), size=(2, 3, 2)).transpose(0, 3, 1, 2)
    student = torch.from_numpy(scores).requires_grad_()
    loss, used = consistency_loss(student, torch.from_numpy(teacher.copy()), threshold)
    loss.backward()
    total, count, gradient = 0.0, 0, np.zeros_like(scores)
    for b, i, j in np.ndindex(2, 3, 2):
        label = int(teacher[b, :, i, j].argmax())
        if teacher[b, label, i, j] < threshold:
            continue
        shares = np.exp(scores[b, :, i, j]) / np.exp(scores[b, :, i, j]).sum()
        total -= math.log(shares[label])
        count += 1
        gradient[b, :, i, j] = (shares - np.eye(classes)[label]) / 12
    assert loss.item() == pytest.approx(total / 12)
    assert used == pytest.approx(count / 12)
    assert student.grad is not None
    np.testing.assert_allclose(student.grad.numpy(), gradient, atol=1e-12)


def test_nothing_confident_gives_zero_with_a_gradient() -> None:
    student = torch.randn(1, 2, 4, 4, requires_grad=True)
    loss, used = consistency_loss(student, torch.full((1, 2, 4, 4), 0.5), threshold=0.9)
    loss.backward()
    assert (loss.item(), used) == (0, 0)
    assert student.grad is not None
    assert not student.grad.any()


def test_no_gradient_flows_into_the_teacher() -> None:
    weights = torch.randn(1, 2, 4, 4, requires_grad=True)
    loss, _ = consistency_loss(torch.randn(1, 2, 4, 4, requires_grad=True), weights.softmax(dim=1), threshold=0.0)
    loss.backward()
    assert weights.grad is None


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ModelError, match="of one shape"):
        consistency_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4), threshold=0.5)
    with pytest.raises(ModelError, match=r"threshold in 0\.\.1, got 95"):
        consistency_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), threshold=95)
