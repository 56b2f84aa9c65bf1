from typing import Any

import pytest
from pydantic import ValidationError

from microseg.config.training_params import AdaptSettings, TrainSettings


@pytest.mark.parametrize("kind", [TrainSettings, AdaptSettings])
@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"max_minutes": 0},
        {"batch_size": 0},
        {"learning_rate": 0},
        {"learning_rate": float("nan")},
        {"ema_decay": 1},
        {"warmup_steps": -1},
        {"zoom_range": (0, 1)},
        {"stepz": 3},
    ],
)
def test_rejects_impossible_numbers(kind: type[TrainSettings], wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        kind(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lambda_image": -1},
        {"color_transfer_prob": -0.1},
        {"normalization": "source"},
        {"grl_warmup": 2},
        {"pseudo_label_rounds": 0},
    ],
)
def test_rejects_impossible_numbers_of_adaptation(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        AdaptSettings(**wrong)


def test_rejects_inconsistent_numbers() -> None:
    with pytest.raises(ValidationError, match="expected the smaller factor first"):
        TrainSettings(zoom_range=(1.2, 0.8))


def test_params_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TrainSettings().steps = 3  # type: ignore[misc]
