import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microseg.errors import ModelError
from microseg.training.losses.domain import domain_loss


def test_by_hand() -> None:
    logits = torch.tensor([[math.log(3)]])  # p(target) = 3/4
    assert domain_loss(logits, True).item() == pytest.approx(-math.log(0.75))
    assert domain_loss(logits, False).item() == pytest.approx(-math.log(0.25))
    assert domain_loss(torch.zeros(2, 1, 5, 5), True).item() == pytest.approx(math.log(2))


def test_answers_for_each_image() -> None:
    logits = torch.tensor([[0.0], [math.log(3)]])
    loss = domain_loss(logits, torch.tensor([True, False]))
    assert loss.item() == pytest.approx((math.log(2) - math.log(0.25)) / 2)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-20, 20), min_size=1, max_size=8), st.booleans())
def test_value_and_gradient_equal_the_formula(values: list[float], target: bool) -> None:
    logits = torch.tensor(values, dtype=torch.float64).view(-1, 1).requires_grad_()
    loss = domain_loss(logits, target)
    loss.backward()
    signs = [-1 if target else 1] * len(values)
    expected = sum(math.log1p(math.exp(s * v)) for s, v in zip(signs, values, strict=True)) / len(values)
    assert loss.item() == pytest.approx(expected)
    slopes = [(1 / (1 + math.exp(-v)) - float(target)) / len(values) for v in values]  # (σ(x) − y) / N
    assert logits.grad is not None
    assert logits.grad.ravel().tolist() == pytest.approx(slopes)


def test_wrong_number_of_answers_is_refused() -> None:
    with pytest.raises(ModelError, match="one for each of 3 images"):
        domain_loss(torch.zeros(3, 1), torch.tensor([True, False]))
